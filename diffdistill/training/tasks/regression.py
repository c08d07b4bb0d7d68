"""A start for the student: regression on the teacher's trajectories (2311.18828, eq. 9; 2405.14867, section 4.1).

The teacher's solver is a deterministic map from noise to image, and from every state on the way. A student that has
learnt it roughly has the teacher's variety before distribution matching begins, and one update costs a fifth of a
Fisher update.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.config.student import Regression
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.machine import send
from diffdistill.matching.micro_batches import Metrics, mean_of, parts_of, rows_of
from diffdistill.pipelines.text.data import TextSet
from diffdistill.sampling.levels import karras
from diffdistill.sampling.samplers.dpm_solver import dpm_solver
from diffdistill.training.device import Device
from diffdistill.training.optim.beside_muon import updaters_of
from diffdistill.training.optim.updater import Ema
from diffdistill.training.randomness import mix
from diffdistill.training.signals import stop_if_asked, stoppable
from diffdistill.training.tasks.kept_pairs import KeptPairs

Trajectories = tuple[Tensor, Tensor, Tensor | None]
"""States at the student's K levels `(B, K, C, H, W)`, the images they lead to `(B, C, H, W)`, conditions `(B,)`."""

PAIRS_STREAM, ORDER_STREAM, LEVEL_STREAM = 1, 2, 3  # apart from the seeds of training steps and of sampled images


def through(grid: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """The solver's levels, which end with 0, with the nearest inner ones (in ln sigma) moved to those `wanted`."""
    first, *inner, last = grid
    free = list(inner)
    for level in wanted:
        free.remove(min(free, key=lambda have: abs(math.log(have / level))))
    return [first, *sorted([*free, *wanted], reverse=True), last]


class TrajectoryPairs:
    """States, labels and images of the teacher's DPM-Solver++(2M), made when first asked for, a batch at a time.

    Of every trajectory are kept the student's first input, a z for the noise z (a = sigma_init for EDM networks), and
    the states at its K - 1 later levels; a batch has one of them for each image, the first in half of the cases.

    The first epoch takes the batches as they are made, each later one all pairs in an order of its own: with the same
    batches again and again the student learns less of the teacher's variety (docs/lab/quickstart.md). Batch k is a
    function of (seed, k) alone; a run keeps it (`keep`), so that a resumed one reads it, and makes none again.
    """

    def __init__(
        self,
        settings: Regression,
        teacher: Denoiser,
        levels: Sequence[float],
        data: ImageSet | TextSet,
        device: Device,
        batch: int,
        seed: int,
        w: float,
    ):
        if settings.solver_steps < len(levels):
            raise ConfigError(
                f"student.regression.solver_steps is {settings.solver_steps} and the student has {len(levels)} steps, "
                f"at whose levels the solver must stop; set it to {len(levels)} or more"
            )
        self.teacher, self.data, self.device, self.seed, self.guidance_scale = teacher, data, device, seed, w
        self.batch, self.count = batch, max(1, settings.pairs // batch)
        self.levels = tuple(levels)
        self.grid = through(karras(settings.solver_steps, teacher.sigma_min, teacher.sigma_max), self.levels[1:])
        self._made: dict[int, Trajectories] = {}
        self._kept: KeptPairs | None = None

    def keep(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        """Write what is made into a folder, and take from it what is there. inputs: digests of teacher and data."""
        what = [
            self.levels,
            self.grid,
            self.batch,
            self.seed,
            self.guidance_scale,
            self.device.precision,
            dict(inputs),
            *([self.teacher.guidance_rescale] if self.teacher.guidance_rescale else []),
        ]
        self._kept = KeptPairs(folder, what)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`(x, sigma, image, label)` of batch k, `(B, C, H, W)`, `(B,)`, `(B, C, H, W)` and `(B,)`."""
        states, image, cond = self._trajectories(k)
        at = torch.zeros(len(image), dtype=torch.long)
        if len(self.levels) > 1:
            generator = torch.Generator().manual_seed(mix(self.seed, LEVEL_STREAM, k))
            later = torch.randint(1, len(self.levels), (len(image),), generator=generator)
            at = later * torch.randint(2, (len(image),), generator=generator)
        x = states[torch.arange(len(image), device=states.device), send(at, states.device)]
        return x, send(torch.tensor(self.levels)[at], x.device), image, cond

    def _trajectories(self, k: int) -> Trajectories:
        epoch, k = divmod(k, self.count)
        if epoch == 0:
            return self._batch(k)
        states, image, cond = self._all
        generator = torch.Generator().manual_seed(mix(self.seed, ORDER_STREAM, epoch))
        order = torch.randperm(len(image), generator=generator)
        rows = order[k * self.batch : (k + 1) * self.batch]
        there = send(rows, image.device)
        return states[there], image[there], None if cond is None else cond[send(rows, cond.device)]

    @cached_property
    def _all(self) -> Trajectories:
        made = []
        for k in range(self.count):
            stop_if_asked()  # a run whose pairs were not kept makes all of them, which may take minutes
            made.append(self._batch(k))
        states, images, conds = zip(*made, strict=True)
        self._made.clear()
        return torch.cat(states), torch.cat(images), None if conds[0] is None else torch.cat(conds)

    def _batch(self, k: int) -> Trajectories:
        if k not in self._made:
            read = None if self._kept is None else self._kept.read(k)
            if processes.most(read is None) or read is None:  # of several processes all make it, or none
                self._made[k] = self._make(k)
                self._write(k)
            else:
                image, device = read["image"], self.device.name
                cond = self.teacher.placed(read.get("cond"))
                self._made[k] = send(read["states"], device), send(image, device), cond
        return self._made[k]

    def _write(self, k: int) -> None:
        if self._kept is not None:
            states, image, cond = self._made[k]
            self._kept.write(k, {"states": states, "image": image} | ({} if cond is None else {"cond": cond}))

    @torch.no_grad()
    def _make(self, k: int) -> Trajectories:
        nothing = slice(0, 0)  # only the labels matter, in the proportions of the data
        _, labels = self.data.draw(self.batch, mix(self.seed, PAIRS_STREAM), k, rows=nothing)
        cond = self.teacher.placed(labels)
        generator = torch.Generator().manual_seed(mix(self.seed, PAIRS_STREAM, k))
        noise = send(torch.randn((self.batch, *self.teacher.image_shape), generator=generator), self.device.name)
        mine = processes.rows(self.batch)
        noise, mine_cond = noise[mine], rows_of(cond, mine)
        states = [self.teacher.process.start_scale(self.levels[0]) * noise]

        def denoise(x: Tensor, sigma: float) -> Tensor:
            if sigma in self.levels[1:]:
                states.append(x)
            with self.device.autocast():
                return self.teacher.guided(x, x.new_full((len(x),), sigma), mine_cond, self.guidance_scale)

        image = self.teacher.clip(dpm_solver(denoise, noise * self.grid[0], self.grid))
        states_of_all = processes.gather(torch.stack(states, dim=1), self.batch)
        return states_of_all, processes.gather(image, self.batch), cond


class TrajectoryRegression:
    """minimise E ||G(x, sigma, c) - x0||^2 / (C H W), x0 the end of the teacher's trajectory through x at sigma."""

    def __init__(
        self,
        settings: Regression,
        student: Denoiser,
        ema: Ema,
        pairs: TrajectoryPairs,
        device: Device,
        part_size: int | None = None,
    ):
        self.student, self.ema, self.pairs, self.device, self.part_size = student, ema, pairs, device, part_size
        self.updaters = updaters_of("regression", student, settings.optimizer, settings.muon, settings.steps)

    def update(self, step: int) -> Metrics:
        with stoppable():  # making pairs may take minutes, and moves no weight
            whole = self.pairs[step]
        count, mine = len(whole[0]), processes.rows(len(whole[0]))
        x, sigma, target, cond = (rows_of(value, mine) for value in whole)
        parts = parts_of(len(x), self.part_size)
        of_parts: list[Metrics] = []
        images = []
        for rows in parts:
            with self.device.autocast():
                x0 = self.student(x[rows], sigma[rows], rows_of(cond, rows))
            loss = (x0 - target[rows]).square().mean()
            (len(x0) / count * loss).backward()
            images.append(x0.detach())
            of_parts.append({"regression/loss": loss.detach()})
        metrics: Metrics = {}
        for updater in self.updaters:
            metrics |= updater.step(step)
        self.ema.update(self.student)
        spread = processes.gather(torch.cat(images), count).std()
        return {**processes.mean(mean_of(of_parts, parts), len(x), count), "x0/std": spread, **metrics}
