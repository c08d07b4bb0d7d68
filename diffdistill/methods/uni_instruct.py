"""Uni-Instruct (2505.20755): minimise the integral over levels of E[h(r) ||score gap||^2], which is an f-divergence of
the images.

    L = w [ h(r) (D_T - D_F) . (D_F - x0) + 1/2 (h(r) - r h'(r)) ||D_T - D_F||^2 ]  +  lambda_G softplus(-l(x_t))

The ratio r = exp(l(x_t)) stays attached: holding it constant gives the wrong gradient in every direction but a shift
(`diffdistill verify`, test B). First the critic alone, then SIM, then the divergence, as parts of the run.

Departures: the released code uses a scalar of the batch in place of r; here r is each sample's own, made 1 on average
per level. The weight w is DMD's by default, held constant; the expansion's own, d(sigma) / sigma^3 in x0 units, is
`level_weight: expansion`.
"""

from typing import ClassVar, Literal

from pydantic import Field

from diffdistill.matching.settings import Form
from diffdistill.methods.base import Adversarial, DivergenceName, Method, Ratio
from diffdistill.section import Fraction


class UniInstruct(Method):
    """2505.20755: the expanded f-divergence: Fisher form, alpha 1/2, weighted by h(r) with r attached."""

    form: ClassVar[Form] = "fisher"
    alpha: ClassVar[float] = 0.5
    normalize: ClassVar[bool] = True
    name: Literal["uni_instruct"] = "uni_instruct"
    divergence: DivergenceName = "forward_kl"
    adversarial: Adversarial | None = Adversarial()
    ratio: Ratio = Ratio()
    critic_warmup: Fraction = Field(
        0.05, description="part of the run that trains the critic and the discriminator only"
    )
    fisher_warmup: Fraction = Field(
        0.2, description="part of the run, from the start, without divergence and adversarial term (SIM)"
    )
    detach_ratio: bool = Field(False, description="ablation: the released code's form, wrong in the scale direction")


METHOD = UniInstruct
