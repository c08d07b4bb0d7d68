"""Consistency distillation (2303.01469, section 4) with the improvements of 2310.14189: one to a few steps, no critic.

    d(f(x_{i+1}, s_{i+1}), sg f(x_i, s_i)) / (s_{i+1} - s_i),    x_i: a step of the teacher's solver from x_{i+1}

The teacher may be guided; its guidance is then folded into the student. Departures: see `diffdistill.consistency`.
"""

from typing import ClassVar, Literal

from diffdistill.methods.base import Distillation
from diffdistill.methods.objectives import ByLevels


class Consistency(ByLevels, Distillation):
    """2303.01469, 2310.14189: neighbouring levels of the teacher's trajectories give one image; no critic."""

    training: ClassVar[str | None] = "consistency distillation (2303.01469, 2310.14189), averaged weights"
    name: Literal["consistency"] = "consistency"


METHOD = Consistency
