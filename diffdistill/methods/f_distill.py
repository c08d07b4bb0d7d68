"""f-distill (2502.15681): DMD2 with each sample's score gap weighted by h(r) = f''(r) r^2.

    d/dx0 = h(r) / mean h * (D_F - D_T) / mean|x0 - D_T|  +  lambda_G d softplus(-l(x_t)) / dx0,        r = exp(l)

Departures: ratios are normalised to mean 1 in bins of the level law's uniform variable (equally full bins; in sigma
most samples share one), by the steps before; they are clipped after that, not before, and to [0.01, 100] where the
paper has [0.1, 20], which narrows a forward-KL student; R1 is at the heads' inputs (2311.17042).
"""

from typing import ClassVar, Literal

from diffdistill.matching.settings import Form
from diffdistill.methods.base import Adversarial, DivergenceName, GapWeight, Method, Ratio


class FDistill(Method):
    """2502.15681: the score gap weighted by h(r) of an f-divergence."""

    form: ClassVar[Form] = "score_gap"
    normalize: ClassVar[bool] = True
    name: Literal["f_distill"] = "f_distill"
    level_weight: GapWeight = "dmd"
    divergence: DivergenceName = "jensen_shannon"
    adversarial: Adversarial | None = Adversarial()
    ratio: Ratio = Ratio()


METHOD = FDistill
