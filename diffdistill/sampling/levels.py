"""Where a sampler calls the denoiser: falling levels from sigma_max, the last of them 0.

Each function takes `(steps, sigma_min, sigma_max)` and returns steps + 1 levels.
"""

import math


def karras(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` levels of 2206.00364, eq. 5 (rho = 7), then 0.

    >>> [round(sigma, 3) for sigma in karras(4, 0.002, 80.0)]
    [80.0, 9.723, 0.47, 0.002, 0.0]
    """
    from diffdistill.process import karras_levels

    return [*karras_levels(steps, sigma_min, sigma_max).tolist(), 0.0]


def angular(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` levels even in arctan(sigma), the time t of the cosine process x = cos(t) x0 + sin(t) eps, then 0.

    The last level is one step above 0, or sigma_min where that is higher.
    """
    import torch

    top = math.atan(sigma_max)
    last = max(top / steps, math.atan(sigma_min))
    return [*torch.linspace(top, last, steps, dtype=torch.float64).tan().tolist(), 0.0]


def even_in_flow(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` levels even in the time t = sigma / (1 + sigma) of x = (1 - t) x0 + t eps, from sigma_max, then 0."""
    import torch

    times = torch.linspace(sigma_max / (1 + sigma_max), 0, steps + 1, dtype=torch.float64)[:-1]
    return [sigma_max, *(times / (1 - times)).tolist()[1:], 0.0]
