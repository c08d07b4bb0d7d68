"""Improved consistency training (iCT, 2310.14189): a one- or few-step model from data, or from a model that is tuned.

    d(f(x0 + s_{i+1} eps, s_{i+1}), sg f(x0 + s_i eps, s_i)) / (s_{i+1} - s_i)

With `initialize_from` it begins as a diffusion model, and needs far fewer steps (2406.14548). Departures: see
`diffdistill.consistency`.
"""

from typing import ClassVar, Literal

from diffdistill.methods.objectives import ByLevels
from diffdistill.objectives.few_steps import FewSteps


class Consistency(ByLevels, FewSteps):
    """2310.14189: neighbouring levels of a line through an image give one image; no teacher."""

    training: ClassVar[str] = "improved consistency training (2310.14189), averaged weights"
    name: Literal["consistency"] = "consistency"


OBJECTIVE = Consistency
