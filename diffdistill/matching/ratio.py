"""The density ratio r = p_teacher / p_student read from a discriminator, calibrated per noise level."""

import logging
import math

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all ranks (a copy; `values` itself in a single process)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


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
        total, count = all_reduce_sum(sums)
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


class RatioTracker(nn.Module):
    """Turns a discriminator's logits on noised student samples into calibrated logits log r.

        l -> clip( clamp(l, -10, 10) - log E_q[r | level bin],  log clip_min, log clip_max )

    For the optimal discriminator E_q[r] = 1 at every level, so the division is self-normalised importance weighting:
    it changes nothing there and mends a discriminator that is off by a constant. Dividing comes before clipping: the
    bounds then mean the same for every discriminator, where those of a raw ratio cut off all of one that is far off.
    Clipping biases the optimum (2502.15681 clips to [0.1, 20], which narrows the forward-KL student by 2 %), hence the
    wide default and the warning.

    E_q[r] is the average of the batches counted so far, not of the batch that is calibrated: each sample's ratio is a
    function of its own logit, so a batch may be taken in parts. The averages are buffers, so they are in the
    checkpoint, and are summed over ranks.
    """

    def __init__(
        self,
        bins: int = 10,
        decay: float = 0.98,
        clip: tuple[float, float] = (1e-2, 1e2),
        max_logit: float = 10.0,
        warn_every: int = 100,
    ):
        super().__init__()
        self.max_logit = max_logit
        self.log_clip = (math.log(clip[0]), math.log(clip[1]))
        # Eight virtual samples with r = 1 keep the first steps, a handful of samples a bin, from dividing by noise.
        self.ratio = LevelMean(bins, decay, prior_count=8.0)
        self.clipped = LevelMean(1, decay, initial=0.0)
        self._calls, self._next_look = 0, warn_every

    def forward(self, logit: Tensor, u: Tensor) -> Tensor:
        """logit: (B,) on student samples noised to the levels of u (B,) in [0, 1]. Returns log r (B,).

        Differentiable in `logit` (the averages are constants).
        """
        return (self._clamped(logit, u) - self.ratio(u).log()).clamp(*self.log_clip)

    @torch.no_grad()
    def update(self, logit: Tensor, u: Tensor) -> None:
        """Count a batch, `logit` and `u` as in `forward`, after it was calibrated; warn of what is out of bounds."""
        clamped = self._clamped(logit, u)
        calibrated = clamped - self.ratio(u).log()
        self.ratio.update(clamped.exp(), u)
        self._watch(active=(clamped != logit) | (calibrated.clamp(*self.log_clip) != calibrated))

    def _clamped(self, logit: Tensor, u: Tensor) -> Tensor:
        if logit.shape != u.shape or logit.ndim != 1:
            raise ValueError(f"logit and u must both have shape (B,), got {tuple(logit.shape)} and {tuple(u.shape)}.")
        if not logit.is_floating_point() or logit.element_size() < 4:
            logit = logit.float()
        return logit.clamp(-self.max_logit, self.max_logit)

    def metrics(self) -> dict[str, float]:
        """`ratio_mean_K`: E_q[r] of level bin K before calibration (right: 1); `ratio_clipped`: part clipped."""
        values = {f"ratio_mean_{k}": mean for k, mean in enumerate(self.ratio.means().tolist())}
        return values | {"ratio_clipped": self.clipped.means().item()}

    def _watch(self, active: Tensor) -> None:
        self.clipped.update(active.float(), torch.zeros_like(active, dtype=torch.float32))
        self._calls += 1
        if self._calls < self._next_look:
            return
        # At 1, 2, 4, ... times `warn_every` calls: a run that stays out of bounds should not fill the log.
        self._next_look *= 2
        metrics = self.metrics()
        clipped = metrics.pop("ratio_clipped")
        if clipped > 1e-3:
            logger.warning(
                "The density ratio of %.1f %% of the samples is clipped to [%g, %g] (allowed: 0.1 %%), which narrows "
                "the student: widen method.ratio.clip; if discriminator/accuracy is near 1 it saturates: lower its "
                "learning rate or set method.adversarial.r1.",
                100 * clipped,
                *(math.exp(bound) for bound in self.log_clip),
            )
        off = {key.removeprefix("ratio_mean_"): mean for key, mean in metrics.items() if not 0.5 <= mean <= 2}
        if off:
            logger.warning(
                "The mean density ratio under the student is %s (right: 1, allowed: 0.5 to 2; %d level bins): the "
                "discriminator is not calibrated there; give it more steps, or draw the levels of real and student "
                "samples from one law.",
                ", ".join(f"{mean:.2g} in bin {k}" for k, mean in off.items()),
                self.ratio.bins,
            )
