"""Scheduled sampling (2411.05472): a part of what a denoiser sees in training is made as its sampler makes it."""

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.matching.micro_batches import Metrics, rows_of
from diffdistill.objectives.scheduled import ScheduledSampling
from diffdistill.process import per_sample
from diffdistill.training.device import Device
from diffdistill.training.tasks.teacher import TeacherTask

RHO = 7.0  # of Karras levels (2206.00364, eq. 5)


def level_above(sigma: Tensor, steps: int, lowest: float, highest: float) -> Tensor:
    """The level one of `steps` Karras steps above sigma `(B,)`, at most the highest: where a sampler comes from.

    >>> level_above(torch.tensor([0.002, 80.0]), 2, 0.002, 80.0).round(decimals=3)
    tensor([80., 80.])
    """
    low, high = lowest ** (1 / RHO), highest ** (1 / RHO)
    above = sigma ** (1 / RHO) + (high - low) / max(steps - 1, 1)
    return torch.maximum(above.clamp(max=high) ** RHO, sigma)


class ScheduledTask(TeacherTask):
    """minimise E lambda(sigma) ||D(x_t) - x0||^2, x_t of noised data or of the model's own estimate noised again."""

    def __init__(self, config: Train, data: ImageSet, device: Device, start: Denoiser | None = None):
        assert isinstance(config.objective, ScheduledSampling)
        self.objective = config.objective
        self.part = 0.0
        super().__init__(config, data, device, start)

    def update(self, step: int) -> Metrics:
        self.part = self.objective.own_part(step * self.config.train_batch_size / len(self.data.images))
        return {**super().update(step), "own_part": self.part}

    def noised(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        x0, x_t, u, sigma, labels = super().noised(images, labels)
        own = torch.rand(len(x0), device=x0.device) < self.part
        before, after = (self.noise.of(torch.randn_like(x0)) for _ in range(2))
        mine = processes.rows(len(x0))  # no other rows are looked at
        x, above = x0[mine], level_above(sigma, self.objective.steps, self.model.sigma_min, self.model.sigma_max)[mine]
        with torch.no_grad(), self.device.autocast():
            estimate = self.model(x + per_sample(above, x) * before[mine], above, rows_of(labels, mine))
        made = estimate.to(x) + per_sample(sigma[mine], x) * after[mine]
        x_t = x_t.clone()
        x_t[mine] = torch.where(per_sample(own[mine], x), made, x_t[mine])
        return x0, x_t, u, sigma, labels
