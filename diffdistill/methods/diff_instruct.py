"""Diff-Instruct (2305.18455): minimise the integral over levels of w KL(q_t || p_t).

    d/dx0 = w (D_F(x_t) - D_T(x_t)),        w = 1 (equation 4 in x0 units: the KL weight is sigma^2)

Departures: teacher and critic run without dropout (the paper's code keeps it and replays its random state); the level
law of the student is the configured one (the paper's is the critic's log-normal); no augmentation of the critic's
images.
"""

from typing import ClassVar, Literal

from diffdistill.matching.settings import Form
from diffdistill.methods.base import GapWeight, Method


class DiffInstruct(Method):
    """2305.18455: reverse KL at every level, weight 1."""

    form: ClassVar[Form] = "score_gap"
    name: Literal["diff_instruct"] = "diff_instruct"
    level_weight: GapWeight = "none"


METHOD = DiffInstruct
