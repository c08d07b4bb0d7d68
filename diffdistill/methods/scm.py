"""sCM (2410.11081): consistency distillation in continuous time, one to a few steps, no critic.

The loss is in `diffdistill.consistency.continuous`. With `method.consistency` of another method it stands beside
distribution matching.
"""

from typing import ClassVar, Literal

from diffdistill.methods.base import Distillation
from diffdistill.methods.objectives import ByDerivative


class SCM(ByDerivative, Distillation):
    """2410.11081: the student's derivative along the teacher's trajectories vanishes; no critic."""

    training: ClassVar[str | None] = "consistency distillation in continuous time (2410.11081), averaged weights"
    name: Literal["scm"] = "scm"


METHOD = SCM
