"""Means per noise level, over steps and ranks, and DMD's normaliser made of one."""

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.process import per_sample


class LevelMean(nn.Module):
    """Running mean of a per-sample quantity in bins of u, the level sampler's own uniform variable.

    Numerator and denominator decay together, so an empty bin keeps its value and a bin with few samples averages over
    more steps. Bins in sigma itself would hold most samples in one of them; bins in u are equally full.
    """

    total: Tensor
    count: Tensor

    def __init__(self, bins: int, decay: float, initial: float = 1.0, prior_count: float = 1e-3):
        super().__init__()
        self.bins, self.decay = bins, decay
        self.register_buffer("total", torch.full((bins,), initial * prior_count))
        self.register_buffer("count", torch.full((bins,), prior_count))

    def bin_of(self, u: Tensor) -> Tensor:
        """u in [0, 1], (B,) -> index of its bin, (B,)."""
        return (u * self.bins).long().clamp(0, self.bins - 1)

    @torch.no_grad()
    def update(self, values: Tensor, u: Tensor) -> None:
        """Count `values` (B,) at u (B,); sums are over all ranks."""
        index = self.bin_of(u)
        sums = torch.zeros(2, self.bins, device=self.total.device)
        sums[0].index_add_(0, index, values.to(sums))
        sums[1].index_add_(0, index, torch.ones_like(values).to(sums))
        total, count = processes.total(sums)
        # A bin without samples does not decay: a rarely drawn level would otherwise forget everything.
        decay = torch.where(count > 0, self.decay, 1.0)
        self.total.mul_(decay).add_(total)
        self.count.mul_(decay).add_(count)

    def means(self) -> Tensor:
        """The mean of each bin, (bins,)."""
        return self.total / self.count

    def forward(self, u: Tensor) -> Tensor:
        """The mean at u (B,), (B,)."""
        return self.means()[self.bin_of(u)]


class LevelNormaliser(nn.Module):
    """DMD's normaliser in expectation: w(u) = 1 / E[ mean |x0 - D_T| | level ], a function of the level only.

    The limit of `dmd_weight` for many dimensions; with it the Fisher form with alpha = 1/2 is exact. The expectation
    is an average over steps, kept per bin of the level sampler's own uniform variable u in [0, 1] in buffers (so in
    the checkpoint) and shared by all ranks.
    """

    def __init__(self, bins: int = 32, decay: float = 0.99, floor: float = 1e-5):
        super().__init__()
        self.floor = floor
        self.distance = LevelMean(bins, decay)

    def forward(self, x0: Tensor, teacher_x0: Tensor, u: Tensor) -> Tensor:
        """x0, teacher_x0: (B, C, H, W); u: (B,). Returns (B, 1, 1, 1), detached; training mode counts the batch."""
        with torch.no_grad():
            distance = (x0 - teacher_x0).abs().flatten(1).mean(1)
            if self.training:
                self.distance.update(distance, u)
            return per_sample(1 / self.distance(u).clamp_min(self.floor), x0)
