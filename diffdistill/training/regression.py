"""A start for the student: regression on the teacher's trajectories (2311.18828, eq. 9; 2405.14867, section 4.1).

The teacher's solver is a deterministic map from noise to image. A student that has learnt it roughly has the
teacher's variety before distribution matching begins, and one update costs a fifth of a Fisher update.
"""

from functools import cached_property

import torch
from torch import Tensor

from diffdistill.config.schema import Regression
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.sampling.noise import GivenNoise
from diffdistill.sampling.solvers import dpm_solver, karras
from diffdistill.text.data import TextSet
from diffdistill.training.device import Device
from diffdistill.training.loop import Metrics
from diffdistill.training.muon import split_weights
from diffdistill.training.optim import Ema, Updater
from diffdistill.training.randomness import mix
from diffdistill.training.teacher import draw_batch

Pairs = tuple[Tensor, Tensor, Tensor | None]
PAIRS_STREAM, ORDER_STREAM = 1, 2  # apart from the seeds of training steps and of sampled images


class TrajectoryPairs:
    """Noise z, label and image of the teacher's DPM-Solver++(2M), made when first asked for, a batch at a time.

    The first epoch takes the batches as they are made, each later one all pairs in an order of its own: with the same
    batches again and again the student learns less of the teacher's variety (docs/design.md). Batch k is a function of
    (seed, k) alone, so a resumed run makes again exactly the pairs it needs.
    """

    def __init__(
        self,
        settings: Regression,
        teacher: Denoiser,
        data: ImageSet | TextSet,
        device: Device,
        batch: int,
        seed: int,
        w: float,
    ):
        self.teacher, self.data, self.device, self.seed, self.guidance_scale = teacher, data, device, seed, w
        self.batch, self.count = batch, max(1, settings.pairs // batch)
        self.levels = karras(settings.solver_steps, teacher.sigma_min, teacher.sigma_max)
        self._made: dict[int, Pairs] = {}

    def __getitem__(self, k: int) -> Pairs:
        """`(z, image, label)` of batch k, `(B, C, H, W)` twice and `(B,)`."""
        epoch, k = divmod(k, self.count)
        if epoch == 0:
            return self._batch(k)
        noise, image, cond = self._all
        generator = torch.Generator().manual_seed(mix(self.seed, ORDER_STREAM, epoch))
        order = torch.randperm(len(noise), generator=generator)
        rows = order[k * self.batch : (k + 1) * self.batch].to(noise.device)
        return noise[rows], image[rows], None if cond is None else cond[rows]

    @cached_property
    def _all(self) -> Pairs:
        noises, images, conds = zip(*(self._batch(k) for k in range(self.count)), strict=True)
        self._made.clear()
        return torch.cat(noises), torch.cat(images), None if conds[0] is None else torch.cat(conds)

    def _batch(self, k: int) -> Pairs:
        if k not in self._made:
            self._made[k] = self._make(k)
        return self._made[k]

    @torch.no_grad()
    def _make(self, k: int) -> Pairs:
        labelled = draw_batch(self.data, self.batch, mix(self.seed, PAIRS_STREAM), k, flip=False)
        _, cond = self.device.put(*labelled)  # only the labels matter, in the proportions of the data
        generator = torch.Generator().manual_seed(mix(self.seed, PAIRS_STREAM, k))
        noise = torch.randn((self.batch, *self.teacher.image_shape), generator=generator).to(self.device.name)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            with self.device.autocast():
                return self.teacher.guided(x, x.new_full((len(x),), sigma), cond, self.guidance_scale)

        return noise, self.teacher.clip(dpm_solver(denoise, GivenNoise(noise), self.levels)), cond


class TrajectoryRegression:
    """minimise E ||G(a z, c) - x0(z, c)||^2 / (C H W), x0 the teacher's solution from the noise z.

    a z is the student's first input (a = sigma_init for EDM networks).
    """

    def __init__(
        self, settings: Regression, student: Denoiser, ema: Ema, pairs: TrajectoryPairs, level: float, device: Device
    ):
        self.student, self.ema, self.pairs, self.level, self.device = student, ema, pairs, level, device
        weights, rest = split_weights(student.network) if settings.muon else ([], list(student.parameters()))
        self.updaters = [Updater("regression", rest, settings.optimizer, settings.steps)]
        if settings.muon:
            if not weights:
                raise ConfigError(
                    "student.regression.muon found no inner layer whose own weights are trained; set it to null (with "
                    "student.lora only the adapters are)"
                )
            self.updaters.append(Updater("regression_muon", weights, settings.muon, settings.steps))

    def update(self, step: int) -> Metrics:
        noise, target, cond = self.pairs[step]
        with self.device.autocast():
            start = self.student.process.start_scale(self.level)
            x0 = self.student(start * noise, noise.new_full((len(noise),), self.level), cond)
        loss = (x0 - target).square().mean()
        loss.backward()
        metrics: Metrics = {}
        for updater in self.updaters:
            metrics |= updater.step(step)
        self.ema.update(self.student)
        return {"regression/loss": loss.detach(), "x0/std": x0.detach().std(), **metrics}
