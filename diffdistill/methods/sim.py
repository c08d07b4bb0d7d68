"""SIM (2410.16794): the Fisher form with the sampling law held constant and the pseudo-Huber distance.

    L = (D_T - D_F) . (D_F - x0) / sqrt(||D_F - D_T||^2 + c^2),        the weight attached, c = 0.01 sqrt(C H W) in
    units of x0

Departure: c is constant in x0 units, where the paper's is in score units.
"""

from typing import ClassVar, Literal

from diffdistill.matching.settings import Form
from diffdistill.methods.base import FisherWeight, Method


class SIM(Method):
    """2410.16794: Fisher form, alpha 1, pseudo-Huber distance."""

    form: ClassVar[Form] = "fisher"
    alpha: ClassVar[float] = 1.0
    name: Literal["sim"] = "sim"
    level_weight: FisherWeight = "pseudo_huber"


METHOD = SIM
