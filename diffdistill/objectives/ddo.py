"""Direct discriminative optimization (DDO, 2503.01103): a model is made better by telling data from its own samples.

The log ratio of the model that is trained to a frozen copy of it, the reference, is a discriminator:

    L = -E_data log sigmoid(beta D) - alpha E_reference log sigmoid(-beta D),
    D = -(||F_theta - F||^2 - ||F_ref - F||^2),

one noise a sample, F the target of the network's own output, the norms summed over C, H, W. The negatives are the
reference's own samples, made once a round. After a round the reference is the best model so far: self-play.

One noise a sample is a bound on the ratio's loss, whose minimum lies past the data's own denoiser (docs/training.md):
a round must be stopped early. So a round's candidates are its evaluations, and the best of them, by `metric`, is what
the next round begins with and what is published; a round without a better model ends the run.

Departures: for networks that are not EDM's the errors are those of their own output too, with weight 1. The moments of
the optimiser, its rate and the average begin anew in each round. Passes are in float32 and without dropout.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from diffdistill.objectives.base import Objective
from diffdistill.section import Count, Positive


class DDO(Objective):
    """2503.01103: the model as its own discriminator, against its own samples, in rounds of self-play."""

    training: ClassVar[str] = "direct discriminative optimization (2503.01103) of a model, averaged weights"
    in_rounds: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    any_noise: ClassVar[bool] = False

    name: Literal["ddo"] = "ddo"
    alpha: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="weight of the negatives; the paper's diffusion models have 0.5 to 6"
    )
    beta: Positive = Field(
        0.05, description="scale of the log ratio within the sigmoid; the paper's diffusion models have 0.01 to 0.1"
    )
    round_steps: Count = Field(1000, description="steps of a round; max_train_steps is a multiple of it")
    metric: str = Field("fid", description="figure of the evaluations by which the best model of a round is chosen")
    reference_images: Count = Field(
        50000, description="images that the reference draws at the start of a round, the negatives"
    )
    reference_sampler: Literal["heun", "dpm_solver", "euler"] = Field(
        "heun", description="solver that draws them, without noise of its own"
    )
    reference_steps: Count | None = Field(None, description="its steps; null: the sampler's own number")

    def check(self, config: Any) -> None:
        every, evaluation = config.evaluation.every, config.evaluation
        if config.initialize_from is None:
            raise ValueError("objective.name=ddo makes a model better that is there; set initialize_from")
        if config.mixed_precision != "no":
            raise ValueError(
                f"objective.name=ddo compares the errors of two networks that are nearly one, which "
                f"mixed_precision={config.mixed_precision} rounds away; set mixed_precision=no"
            )
        if evaluation.stop is not None:
            raise ValueError(
                "evaluation.stop ends a run, and objective.name=ddo stops each round by its best evaluation itself; "
                "set evaluation.stop=null"
            )
        if self.metric not in evaluation.figures():
            raise ValueError(
                f"objective.metric is '{self.metric}', and what is measured is {', '.join(evaluation.figures())}; "
                f"choose one of these, or add it to evaluation.metrics"
            )
        if self.round_steps > config.max_train_steps or config.max_train_steps % self.round_steps:
            raise ValueError(
                f"max_train_steps is {config.max_train_steps}, which is no multiple of objective.round_steps="
                f"{self.round_steps}; a run is whole rounds, change one of them"
            )
        if not every or self.round_steps % every:
            raise ValueError(
                f"evaluation.every is {every}, and a round of objective.round_steps={self.round_steps} is stopped at "
                f"its best evaluation, the last of which ends it; set evaluation.every to a part of that"
            )
        if self.reference_images < config.train_batch_size:
            raise ValueError(
                f"objective.reference_images is {self.reference_images} and train_batch_size "
                f"{config.train_batch_size}; a batch has as many of them, so make at least one"
            )


OBJECTIVE = DDO
