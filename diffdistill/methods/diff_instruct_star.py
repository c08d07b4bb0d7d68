"""Diff-Instruct* (2410.20898): a reward, and SIM's pseudo-Huber distance of scores to the guided teacher.

    L = -y . (D_F - x0) / sqrt(||y||^2 + c^2)  -  a C H W R(x0, c),        y = D_F - D_guided,
        c = 0.01 sqrt(C H W); y, D_F and the root depend on x0 through x_t

`guidance: outside` leaves y to the unguided teacher and adds (k - 1) (D_null - D_c) . x0, the gradient of the implicit
reward of guidance. The paper finds inside better. Outside, that term is not divided by a norm as y is: it grows with
the image, so k - 1 is a weight of another kind there, and small.

Departures: as in `sim` (c in units of x0) and `diff_instruct_pp`; no training code is published, so rates, c and the
weight are ours. Calibrate the weight by `gradient/reward` over `gradient/matching`.
"""

from typing import ClassVar, Literal

from diffdistill.matching.settings import Form
from diffdistill.methods.base import FisherWeight, Rewarded


class DiffInstructStar(Rewarded):
    """2410.20898: a reward and SIM's score-based divergence to the teacher."""

    form: ClassVar[Form] = "fisher"
    alpha: ClassVar[float] = 1.0
    plain_method: ClassVar[str] = "sim"
    name: Literal["diff_instruct_star"] = "diff_instruct_star"
    level_weight: FisherWeight = "pseudo_huber"


METHOD = DiffInstructStar
