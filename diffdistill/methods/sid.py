"""SiD (2404.04057): the Fisher form with DMD's normaliser held constant.

    L = [ (D_T - D_F) . (D_F - x0) + (1 - alpha) ||D_T - D_F||^2 ] / mean|x0 - D_T|

alpha = 1/2 is the Fisher divergence, 1 is SIM's gradient, the paper's 1.2 over-disperses and can run away (see
`losses.alpha_bounds`), so the default is 1. With `adversarial` it is SiDA (2410.14919).

Departures: no augmentation, no dropout. Of SiDA: heads on the teacher's features, where the paper takes the channel
mean of the critic's bottleneck; a verdict a sample, where the paper averages over the batch; the adversarial term is
not divided by mean|x0 - D_T|.
"""

from typing import ClassVar, Literal

from pydantic import Field

from diffdistill.matching.settings import Form
from diffdistill.methods.base import Method


class SiD(Method):
    """2404.04057: Fisher form with DMD's normaliser; alpha 0.5 is the Fisher divergence, 1 is SIM; adversarial makes
    it SiDA.
    """

    form: ClassVar[Form] = "fisher"
    name: Literal["sid"] = "sid"
    alpha: float = Field(1.0, description="0.5 to 1; above, a student broader than the teacher runs away")


METHOD = SiD
