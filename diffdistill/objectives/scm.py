"""Consistency training in continuous time (sCT, 2410.11081): a one- or few-step model from data.

The loss is in `diffdistill.consistency.continuous`, without a teacher.
"""

from typing import ClassVar, Literal

from diffdistill.methods.objectives import ByDerivative
from diffdistill.objectives.few_steps import FewSteps


class SCM(ByDerivative, FewSteps):
    """2410.11081: the derivative along a line through an image vanishes on average; no teacher."""

    training: ClassVar[str] = "continuous-time consistency training (2410.11081), averaged weights"
    name: Literal["scm"] = "scm"


OBJECTIVE = SCM
