"""Weights of denoising score matching as functions of the level: how much an error at each level counts.

Every weight here is the factor on the mean squared error of x0, so that it means the same for every parametrisation:
the error of x0 is sigma^2 times that of eps, and `losses.native_weight` leads to v, flow and EDM's F. With the
logarithm of the signal-to-noise ratio, l = -2 ln sigma, any of them is a weighting w of

    L = 1/2 integral w(l) E||eps - eps^||^2 dl        (2303.00848; w = 1: the negative ELBO up to a constant).

Two kinds. Factors (edm, debiased, min_snr) weigh what the level law draws, so law and weight make the objective
together. Objectives (elbo, sigmoid, edm_monotonic) are a w(l): the law's own density is divided out, so the law
decides only how much the gradient scatters; `effective_share` measures that.

    name           factor on the error of x0                          the same on that of eps
    edm            (sigma^2 + s^2) / (sigma s)^2                      (sigma^2 + s^2) / s^2         2206.00364, Table 1
    debiased       1 / sigma                                          sigma = 1 / sqrt(SNR)         2310.08442
    min_snr        min(1 / sigma^2, 5)                                min(SNR, 5) / SNR             2303.09556
    elbo           w = 1                                                                            2303.00848
    sigmoid        w = sigmoid(2 - l)                                                               2303.00848
    edm_monotonic  w = the largest of EDM's from l on                                               2303.00848

No torch is loaded here: settings ask the table for its names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.process import LevelLaw

# EDM's own law of levels, ln sigma ~ N(-1.2, 1.2^2), in l = -2 ln sigma.
CENTRE, SPREAD = 2.4, 2.4
LEAST_SHARE = 0.1


@dataclass(frozen=True)
class LossWeight:
    """A weight by name: a factor of `(sigma, sigma_data)`, or an objective, w of `(sigma, sigma_data)`.

    law: the level law under which its gradients scatter least, of those that were tried (docs/further.md).

    >>> import torch
    >>> from diffdistill.process import Level, LevelLaw
    >>> cubed = LossWeight("cubed", "1 / sigma^3", factor=lambda sigma, sigma_data: sigma**-3)
    >>> cubed.of(LevelLaw(Level("uniform", sigma_min=1.0, sigma_max=3.0)), torch.tensor([0.5]))
    tensor([0.1250])
    """

    name: str
    meaning: str
    factor: Callable[[Tensor, float], Tensor] | None = None
    objective: Callable[[Tensor, float], Tensor] | None = None
    law: str = "lognormal"

    def of(self, law: LevelLaw, u: Tensor, sigma_data: float = 0.5) -> Tensor:
        """The factor on the error of x0 at u `(B,)` of the law, `(B,)`: w (d sigma / du) / sigma^3 of an objective.

        1/2 w / p(l) / sigma^2, p the law's density of l, and 1 / p(l) = 2 (d sigma / du) / sigma.
        """
        sigma = law.sigma(u)
        if self.factor is not None:
            return self.factor(sigma, sigma_data)
        assert self.objective is not None
        return self.objective(sigma, sigma_data) * law.slope(u) / sigma**3


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """lambda(sigma) = (sigma^2 + s^2) / (sigma s)^2, s = sigma_data (2206.00364, Table 1). Same shape as sigma.

    >>> import torch
    >>> edm_weight(torch.tensor([2.0]))
    tensor([4.2500])
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def debiased_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """1 / sigma: the loss of eps over sqrt(SNR) (2310.08442), without the bound on SNR of some codes.

    >>> import torch
    >>> debiased_weight(torch.tensor([2.0]))
    tensor([0.5000])
    """
    return 1 / sigma


def min_snr_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """min(SNR, 5), SNR = 1 / sigma^2 (2303.09556, gamma = 5).

    >>> import torch
    >>> min_snr_weight(torch.tensor([0.1, 2.0]))
    tensor([5.0000, 0.2500])
    """
    return (sigma**-2).clamp(max=5.0)


def elbo_objective(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """w = 1, the variational bound (2303.00848).

    >>> import torch
    >>> elbo_objective(torch.tensor([0.1, 2.0]))
    tensor([1., 1.])
    """
    return sigma**0


def sigmoid_objective(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """w = sigmoid(2 - l) = sigma^2 / (sigma^2 + e^-2) (2303.00848; the 2 is not confirmed).

    >>> import torch
    >>> sigmoid_objective(torch.tensor([1.0]))  # 1 / (1 + e^-2)
    tensor([0.8808])
    """
    return sigma**2 / (sigma**2 + math.exp(-2))


def edm_objective(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """EDM's weight and law as one w(l) = N(l; 2.4, 2.4^2) (e^-l + s^2) (2303.00848). Same shape as sigma.

    >>> import torch
    >>> edm_objective(torch.tensor([5.22727]))  # its maximum for s = 0.5
    tensor([0.2710])
    """
    z = (-2 * sigma.log() - CENTRE) / SPREAD
    return (-0.5 * z * z).exp() / (SPREAD * math.sqrt(2 * math.pi)) * (sigma**2 + sigma_data**2)


def edm_peaks(sigma_data: float = 0.5) -> list[float]:
    """The levels of the maxima of `edm_objective`; one, or two for sigma_data of 1.07 to 1.51.

    There d ln w / dl = -(l - 2.4) / 2.4^2 - 1 / (1 + s^2 e^l) falls through 0: by bisection between its turning
    points.

    >>> [round(sigma, 5) for sigma in edm_peaks()]
    [5.22727]
    """
    shift, reach = -2 * math.log(sigma_data), math.acosh(SPREAD**2 / 2 - 1)

    def rising(x: float) -> bool:
        return (x - CENTRE) / SPREAD**2 + 1 / (1 + math.exp(x - shift)) < 0

    peaks = []
    # All zeros are within a SPREAD^2 below CENTRE, for the last term is between 0 and 1.
    ends = sorted({CENTRE - SPREAD**2 - 1, CENTRE + 1, shift - reach, shift + reach})
    for low, high in pairwise(ends):
        if not rising(low) or rising(high):
            continue
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if rising(middle) else (low, middle)
        peaks.append(math.exp(-low / 2))
    return peaks


def edm_monotonic_objective(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The largest of EDM's w from l up: never rising in l, EDM's own below its maximum's level (2303.00848).

    Times 2 / s^2, so that under EDM's law of levels it is `edm_weight` there. The maximum is that of the function; a
    maximum over a batch, as in a public re-implementation, is of another objective in every step.

    >>> import torch
    >>> edm_monotonic_objective(torch.tensor([1.0, 5.22727, 80.0]))
    tensor([1.0082, 2.1682, 2.1682])
    """
    import torch

    tops = [edm_objective(sigma.clamp(max=peak), sigma_data) for peak in edm_peaks(sigma_data)]
    return torch.stack(tops).amax(0) * (2 / sigma_data**2)


LOSS_WEIGHTS = {
    weight.name: weight
    for weight in (
        LossWeight("edm", "EDM's, every level alike for its network", edm_weight),
        LossWeight("debiased", "1 / sigma", debiased_weight),
        LossWeight("min_snr", "min(1 / sigma^2, 5)", min_snr_weight),
        LossWeight("elbo", "the likelihood's bound", objective=elbo_objective, law="loguniform"),
        LossWeight("sigmoid", "sigmoid(2 + 2 ln sigma)", objective=sigmoid_objective),
        LossWeight("edm_monotonic", "EDM's, never less at a higher level", objective=edm_monotonic_objective),
    )
}


def get_loss_weight(name: str) -> LossWeight:
    """The row of that name; ConfigError where there is none.

    >>> get_loss_weight("elbo").law
    'loguniform'
    """
    if name not in LOSS_WEIGHTS:
        raise ConfigError(f"loss_weight '{name}' is not known; it must be one of {', '.join(LOSS_WEIGHTS)}")
    return LOSS_WEIGHTS[name]


def effective_share(weight: LossWeight, law: LevelLaw, sigma_data: float = 0.5) -> float:
    """Part of a law's draws that count under a weight: E[g]^2 / E[g^2], over the law, 1 where all count alike.

    g is the weight's factor times c_out^2 = (sigma s)^2 / (sigma^2 + s^2): what it puts on the error of EDM's network
    output, whose size is about the same at every level. The gradient scatters as if that part of the batch were there.

    >>> from diffdistill.loss_weights import get_loss_weight
    >>> from diffdistill.process import Level, LevelLaw
    >>> [round(effective_share(get_loss_weight(n), LevelLaw(Level("lognormal"))), 3) for n in ("edm", "edm_monotonic")]
    [1.0, 0.999]
    """
    import torch

    u = (torch.arange(16384) + 0.5) / 16384
    sigma = law.sigma(u)
    g = (weight.of(law, u, sigma_data) / edm_weight(sigma, sigma_data)).double()
    return float(g.mean() ** 2 / g.square().mean())


def check_law(weight: LossWeight, law: LevelLaw, sigma_data: float = 0.5) -> None:
    """ConfigError for a level law under which fewer than a tenth of the draws count.

    >>> from diffdistill.loss_weights import get_loss_weight
    >>> from diffdistill.process import Level, LevelLaw
    >>> check_law(get_loss_weight("elbo"), LevelLaw(Level("lognormal")))
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: loss_weight 'elbo' leaves 0.5 % of the draws of level.law 'lognormal' to count, ...
    """
    share = effective_share(weight, law, sigma_data)
    if share < LEAST_SHARE:
        raise ConfigError(
            f"loss_weight '{weight.name}' leaves {100 * share:.1f} % of the draws of level.law '{law.settings.law}' "
            f"to count, and its gradients are noise; set level.law={weight.law}, or loss_weight=edm"
        )
