"""RAFT (2304.06767) and curated retraining (2407.09499): a model goes on with its own samples that score best.

The model that the run begins with draws K samples a condition, once; a reward scores them, as finished pictures, so it
needs no gradient: it may be a program, a judge that wants PIL pictures, or a person's choices in a table. Of each K
the best is kept (RAFT), or one by softmax (curated retraining), and the model is trained by denoising score matching:

    minimise (1 - lambda) E_kept L(x0) + lambda E_data L(x0),        lambda the part of real images,

which keeps variety and what the reward does not see. A further round is a further run that begins with this one's
model.

A one-step student has no such form: it makes each sample of its noise already, so the pairs (z, x) of its best samples
teach it nothing, and other noise with the same images teaches it their mean. Retrain the teacher, then distil it.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from diffdistill.objectives.base import Objective
from diffdistill.rewards.kinds import allowed_rewards
from diffdistill.section import Count, Fraction, Positive


class RAFT(Objective):
    """2304.06767: a model trained on its own samples that a reward, with a gradient or without, likes best."""

    training: ClassVar[str] = "RAFT (2304.06767) by a reward, averaged weights"

    name: Literal["raft"] = "raft"
    reward: str = Field(description=f"what scores the samples, with a gradient or without: {allowed_rewards()}")
    class_prompts: tuple[str, ...] | None = Field(
        None, description="text of each class, for a reward that reads texts and a class-conditional model"
    )
    candidates: Count = Field(4, description="samples a condition, K, of which one is kept; 2 or more")
    choice: Literal["best", "softmax"] = Field(
        "best", description="which is kept: the best (RAFT); one drawn by softmax of its score (curated retraining)"
    )
    scale: Positive = Field(1.0, description="softmax: factor of the scores, in one over the reward's unit")
    images: Count = Field(5000, description="samples that are kept; K times as many are drawn, before the first step")
    real_part: Fraction = Field(0.2, description="lambda: part of a batch that is real images of the data")
    sampler: Literal["dpm_solver", "heun", "euler"] = Field("dpm_solver", description="solver that draws the samples")
    steps: Count | None = Field(None, description="its steps; null: the sampler's own number")
    reward_batch_size: Count = Field(64, description="images at a time through the reward")

    def check(self, config: Any) -> None:
        if config.initialize_from is None:
            raise ValueError("objective.name=raft makes a model that is there better; set initialize_from")
        if self.candidates < 2:
            raise ValueError(
                f"objective.candidates is {self.candidates}, and the best of one sample is any; give 2 or more"
            )
        if self.images < config.train_batch_size:
            raise ValueError(
                f"objective.images is {self.images} and train_batch_size {config.train_batch_size}; keep at least as "
                f"many samples as a batch has"
            )
        real = round(self.real_part * config.train_batch_size)
        if real == config.train_batch_size or (self.real_part > 0 and real == 0):
            raise ValueError(
                f"objective.real_part is {self.real_part:g}, which of train_batch_size={config.train_batch_size} is "
                f"{real} real images; set one that leaves room for samples, 0 for none, or raise train_batch_size"
            )


OBJECTIVE = RAFT
