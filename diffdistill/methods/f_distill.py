"""f-distill (2502.15681): DMD2 with each sample's score gap weighted by h(r) = f''(r) r^2.

    d/dx0 = h(r) / mean h * (D_F - D_T) / mean|x0 - D_T|  +  lambda_G d softplus(-l(x_t)) / dx0,        r = exp(l)

Departures: ratios are normalised to mean 1 in bins of the level law's uniform variable (equally full bins; in sigma
most samples share one), by the steps before; they are clipped after that, not before, and to [0.01, 100] where the
paper has [0.1, 20], which narrows a forward-KL student; R1 is at the heads' inputs (2311.17042).
"""

from diffdistill.config.methods import FDistill
from diffdistill.matching.step import Choices


def choices(settings: FDistill) -> Choices:
    return Choices(
        form="score_gap",
        divergence=settings.divergence,
        level_weight=settings.level_weight,
        normalize=True,
        adversarial=settings.adversarial,
        ratio=settings.ratio,
        guidance_scale=settings.guidance_scale,
    )
