"""Training a student as a consistency model: on a teacher's trajectories, or on lines through the data's images."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.config.schema import Distill
from diffdistill.consistency.continuous import ContinuousConsistency
from diffdistill.consistency.discrete import DiscreteConsistency
from diffdistill.consistency.objective import Denoise, Noise, Objective
from diffdistill.consistency.settings import Continuous, Discrete
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.matching.micro_batches import Metrics, blank_like, parts_of, rows_of
from diffdistill.methods.objectives import ByDerivative, ByLevels
from diffdistill.pipelines.text.data import TextSet
from diffdistill.section import Section, plain
from diffdistill.training.device import Device
from diffdistill.training.flat import Parts
from diffdistill.training.kinds.base import names_model
from diffdistill.training.optim.updater import Updater
from diffdistill.training.tasks.student import StudentTask


class ConsistencyLoss:
    """The gradient of a consistency loss at a model's weights, in parts of a batch, over all processes."""

    def __init__(self, objective: Objective, model: Denoiser, device: Device, part_size: int | None = None):
        self.objective, self.model, self.device, self.part_size = objective, model, device, part_size

    def backward(
        self,
        x0: Tensor,
        cond: Tensor | None,
        mine: slice,
        count: int,
        step: int,
        weight: float = 1.0,
        coupled: Callable[[Noise], Noise] = lambda noise: noise,
    ) -> Metrics:
        """Add it to the weights' gradients.

        x0 `(B, C, H, W)`, cond `(B,)`: images of the data, those `mine` of the `count` of all processes. coupled: the
        noise of all, in another order.
        """
        noise = coupled(self.objective.draw(blank_like(x0, count), step)).part(mine)
        raw: list[Tensor] = []
        shares: list[Tensor] = []
        for rows in parts_of(len(x0), self.part_size):
            part = noise.part(rows)
            with self.device.autocast():
                losses = self.objective.losses(self.model, x0[rows], rows_of(cond, rows), part, step)
            share = self.objective.weights(part) * losses / count
            (weight * share.sum()).backward()
            raw.append(losses.detach())
            shares.append(share.detach())
        self.objective.count(torch.cat(raw), noise)
        return processes.mean({"consistency/loss": torch.cat(shares).sum() * count / len(x0)}, len(x0), count)


def consistency_of(task: StudentTask, settings: Section, total: int) -> ConsistencyLoss:
    """The loss of the task's student on the trajectories of its teacher, for a phase of `total` steps."""
    teacher, scale = task.teacher, task.config.method.guidance_scale

    def flow(x_t: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        return teacher.guided(x_t, sigma, cond, scale)

    objective = objective_of(settings, task.student, task.levels[0], total, task.device, flow)
    return ConsistencyLoss(objective, task.student, task.device, task.config.micro_batch_size)


def objective_of(
    settings: Section, model: Denoiser, sigma_max: float, total: int, device: Device, flow: Denoise | None = None
) -> Objective:
    """What these settings mean for a model, whose levels end where its sampling begins."""
    low, sigma_max = model.sigma_min, min(sigma_max, model.sigma_max)  # a flow's first level may be infinite
    if isinstance(settings, ByLevels):
        return DiscreteConsistency(plain(settings, Discrete), model.process, low, sigma_max, total, flow)
    assert isinstance(settings, ByDerivative)
    exact = lambda: torch.autocast(device.name.type, enabled=False)  # noqa: E731
    continuous = ContinuousConsistency(plain(settings, Continuous), low, sigma_max, total, flow, exact)
    continuous.mean_loss.to(device.name)
    return continuous


class ConsistencyPhase:
    """Consistency distillation alone: a whole run, or the start of one."""

    def __init__(self, task: StudentTask, settings: Section, updaters: list[Updater], total: int):
        self.task, self.updaters = task, updaters
        self.loss = consistency_of(task, settings, total)
        self.parts: Parts = {f"{updater.name}_optimizer": updater.optimizer for updater in updaters}
        self.parts |= self.loss.objective.modules()

    def update(self, step: int) -> Metrics:
        task, config = self.task, self.task.config
        count, mine = config.train_batch_size, processes.rows(config.train_batch_size)
        drawn = task.data.draw(count, config.seed, step, config.data.horizontal_flip, mine)
        x0, labels = (rows_of(value, mine) for value in drawn)
        (x0, _), cond = task.device.put(x0, None), task.student.placed(labels)
        assert x0 is not None  # prompts alone are refused
        metrics = self.loss.backward(x0, cond, mine, count, step)
        for updater in self.updaters:
            metrics |= updater.step(step)
        task.ema.update(task.student)
        return metrics


class ConsistencyTask(StudentTask):
    """The whole run is consistency distillation."""

    def __init__(self, config: Distill, teacher: Denoiser, data: ImageSet | TextSet, device: Device):
        if config.initialize_from is not None and not names_model(config.initialize_from):
            raise ConfigError(
                f"initialize_from '{config.initialize_from}' is no model folder, which a consistency model begins "
                f"from; give the student/ of that run"
            )
        super().__init__(config, teacher, data, device)
        total = config.max_train_steps
        updaters = [Updater("student", self.student.parameters(), config.student.optimizer, total)]
        self.phase = ConsistencyPhase(self, config.method, updaters, total)
        self.parts = {"student": self.student, "student_ema": self.ema, **self.phase.parts}

    def update(self, step: int) -> Metrics:
        return self.phase.update(step)
