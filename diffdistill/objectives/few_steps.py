"""What objectives share whose models are sampled in one step or a few."""

from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field

from diffdistill.objectives.base import Objective
from diffdistill.section import Count, Positive


class FewSteps(Objective):
    """Levels at which the published model is asked; it is trained at all below the first."""

    denoises: ClassVar[bool] = False
    any_noise: ClassVar[bool] = False

    steps: Count = Field(1, description="sampling steps of the published model")
    levels: tuple[Positive, ...] | None = Field(
        None, description="its levels, descending; null: the network's highest, and the stock spacing below it"
    )

    coupling: Literal["independent", "ot", "c2ot"] = Field(
        "independent",
        description="which noise of a batch an image is noised with: any, or the nearest, within its class (c2ot, "
        "2503.10636; ot is for data without labels); asks for scipy",
    )

    def check(self, config: Any) -> None:
        if self.levels is None:
            return
        if len(self.levels) != self.steps:
            raise ValueError(
                f"objective.steps is {self.steps} and objective.levels has {len(self.levels)} values; give one level "
                f"a step"
            )
        if any(low >= high for high, low in pairwise(self.levels)):
            raise ValueError(
                f"objective.levels {list(self.levels)} must descend, from the noisiest input to the cleanest"
            )
