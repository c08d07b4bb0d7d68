"""How noisy a batch looks: the statistics that the Time-Shift sampler compares with the schedule."""

from typing import Literal

from torch import Tensor

from diffdistill.errors import ConfigError

Statistic = Literal["corrected", "paper", "haar"]
STATISTICS: tuple[Statistic, ...] = ("corrected", "paper", "haar")


def level_statistic(x: Tensor, statistic: Statistic = "corrected") -> float:
    """One number for a batch `x` `(B, C, H, W)`, in squared units of x; float32 inside.

    - corrected, paper: the unbiased variance of all C H W entries of an image around the image's own mean, averaged
      over the batch (2305.15583, section 3.2; the average divides the estimate's spread by sqrt(B))
    - haar: the squared robust deviation (median |c| / 0.6745)^2 of the finest diagonal Haar coefficients, which hold
      all of the noise and little of a smooth image; averaged over the batch

    Of clean data, the same number is the `data_variance` of `time_shift_sampler`: white noise of deviation s adds
    s^2 to it. Raises ConfigError for haar on anything but images or frames of at least 2 x 2.
    """
    x = x.float()
    if statistic != "haar":
        return float(x.flatten(1).var(dim=1).mean())
    if x.ndim not in (4, 5) or min(x.shape[-2:]) < 2:
        raise ConfigError(f"the haar statistic needs images (B, C, H, W), not shape {tuple(x.shape)}; use corrected")
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    top, bottom = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
    difference = top - bottom
    diagonal = (difference[..., 0::2] - difference[..., 1::2]) / 2
    deviation = diagonal.abs().flatten(1).median(dim=1).values / 0.6745
    return float((deviation**2).mean())
