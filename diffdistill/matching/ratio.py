"""The density ratio r = p_teacher / p_student read from a discriminator, calibrated per noise level."""

import logging
import math

import torch
from torch import Tensor, nn

from diffdistill.matching.level_mean import LevelMean
from diffdistill.matching.micro_batches import read

logger = logging.getLogger(__name__)


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

    >>> tracker = RatioTracker(bins=1)
    >>> logit, u = torch.full((4,), 0.5), torch.rand(4)
    >>> for _ in range(500):
    ...     tracker.update(logit, u)
    >>> bool(tracker(logit, u).abs().max() < 0.01)  # a discriminator that is off by a constant
    True
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

    def metrics(self) -> dict[str, Tensor]:
        """`ratio_mean_K`: E_q[r] of level bin K before calibration (right: 1); `ratio_clipped`: part clipped.

        Scalars on the device of the averages: whoever logs them reads them.
        """
        values = {f"ratio_mean_{k}": mean for k, mean in enumerate(self.ratio.means().unbind())}
        return values | {"ratio_clipped": self.clipped.means()[0]}

    def _watch(self, active: Tensor) -> None:
        self.clipped.update(active.float(), torch.zeros_like(active, dtype=torch.float32))
        self._calls += 1
        if self._calls < self._next_look:
            return
        # At 1, 2, 4, ... times `warn_every` calls: a run that stays out of bounds should not fill the log.
        self._next_look *= 2
        metrics = read(self.metrics())
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
