"""DMD2 (2405.14867): reverse KL with DMD's normaliser, an adversarial term on real data, several critic updates per
student update.

    d/dx0 = (D_F - D_T) / mean|x0 - D_T|  +  lambda_G d softplus(-l(x_t)) / dx0

Departures: the heads read the frozen teacher's features by default, for one pass then gives D_T and features and the
critic's task is left alone; `adversarial.features: critic` is the paper's placement. The classifier sees the levels of
the score gap, not uniform ones, so that its logit is a calibrated ratio there. The images of one student update serve
all its critic updates, with new noise each time, which saves one pass in four.
"""

from typing import ClassVar, Literal

from diffdistill.matching.settings import Form
from diffdistill.methods.base import Adversarial, GapWeight, Method


class DMD2(Method):
    """2405.14867: reverse KL with DMD's normaliser, an adversarial term, two time scales."""

    form: ClassVar[Form] = "score_gap"
    name: Literal["dmd2"] = "dmd2"
    level_weight: GapWeight = "dmd"
    adversarial: Adversarial | None = Adversarial()


METHOD = DMD2
