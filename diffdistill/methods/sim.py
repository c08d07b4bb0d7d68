"""SIM (2410.16794): the Fisher form with the sampling law held constant and the pseudo-Huber distance.

    L = (D_T - D_F) . (D_F - x0) / sqrt(||D_F - D_T||^2 + c^2),        the weight attached, c = 0.01 sqrt(C H W) in
    units of x0

Departure: c is constant in x0 units, where the paper's is in score units.
"""

from diffdistill.config.methods import SIM
from diffdistill.matching.step import Choices


def choices(settings: SIM) -> Choices:
    return Choices(
        form="fisher",
        alpha=1.0,
        level_weight=settings.level_weight,
        adversarial=settings.adversarial,
        guidance_scale=settings.guidance_scale,
    )
