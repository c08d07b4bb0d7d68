"""Settings of `diffdistill align`: pairs of images, a method that prefers, and what of the network it trains."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffdistill.config.parts import Evaluations, Lora
from diffdistill.config.schema import Data, Run, no_part_above
from diffdistill.data.formats import allowed_pairs
from diffdistill.data.prompts import MOST_SEED
from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import WATCHED_PAIRS
from diffdistill.optimizers import Optimizer
from diffdistill.section import Count, Positive, Section

LossSpace = Literal["native", "epsilon", "x0"]


class PairData(Data):
    path: str = Field(description=f"pairs: {allowed_pairs(of_package=True)}")
    image_size: Count | None = Field(None, description="side of the square that images are cut to; null: the model's")
    limit: Count | None = Field(None, description="use the first N pairs only")
    horizontal_flip: bool = Field(False, description="mirror half of the pairs, both images of a pair alike")
    ties: Literal["drop", "keep"] = Field(
        "drop", description="pairs labelled 0.5 and 0.5: drop them, or keep them to draw their margin to 0"
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="part of the captions, with all their pairs, kept for measuring; chosen by a hash"
    )
    held_out_path: str | None = Field(None, description="pairs to measure on instead, in any of these forms")
    held_out_split: str = Field("train", description="split of held_out_path")


class PairEvaluation(Evaluations):
    """Margins of held-out pairs, at the same noise for every model; grids of their captions, and what judges say."""

    num_pairs: Count = Field(256, description="held-out pairs measured, at most")
    levels: Count = Field(8, description="times at which each pair is measured, evenly spread over their law")
    batch_size: Count = Field(8, description="pairs in one call of the network")
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 1000
    prompts: tuple[str, ...] = Field((), description="captions of the grids; empty: the first eight held-out ones")
    sampling_steps: Count = Field(25, description="steps of the pipeline's own scheduler in the grids")
    guidance_scale: Annotated[float, Field(ge=0)] = Field(5.0, description="classifier-free guidance in the grids")
    judges: tuple[str, ...] = Field(
        (), description="rewards that score images of held-out captions, before and after; best not those of the pairs"
    )
    judged_images: Annotated[int, Field(ge=2, le=10**9)] = Field(
        64, description="images that each judge sees, captions in turn"
    )

    def figures(self) -> tuple[str, ...]:
        return (*WATCHED_PAIRS, "judge/", "judge_win_rate/") if self.judges else WATCHED_PAIRS


class MaPO(Section):
    """2406.06424: reference-free. beta null is the authors' code; beta 8 to 1024 is the AAAI-26 paper's loss."""

    name: Literal["mapo"]
    c: Positive | None = Field(None, description="factor of the losses in the link; null: 0.5, or 1 with beta")
    margin_scale: Positive | None = Field(None, description="factor T of the margin; null: 1000; not with beta")
    margin_weight: Positive | None = Field(None, description="weight of the margin's term; null: 0.1; not with beta")
    beta: Positive | None = Field(None, description="the paper's form; the larger, the more plain fine-tuning")
    link_mode: Literal["scale", "power"] = Field("scale", description="the paper's phi_beta: beta phi, or phi^beta")
    loss_space: LossSpace = Field("native", description="units of the losses: the network's own, epsilon or x0")


class DiffusionDPO(Section):
    """2311.12908: the baseline, with a frozen reference model (for LoRA: the network without its adapters)."""

    name: Literal["diffusion_dpo"]
    beta: Positive = Field(5000.0, description="5000 for SDXL, 2500 for SD1.5")
    variant: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.0, description="chance that a label is wrong")
    robust_beta: Positive | None = Field(
        None,
        description="Dr. DPO: pairs count by exp(-loss / robust_beta), so that wrong labels count little; null: alike",
    )
    divergence: str = Field(
        "reverse_kl",
        description="f-DPO: from the reference model; reverse_kl (DPO), forward_kl, jensen_shannon, "
        "squared_hellinger, jeffreys, pearson, alpha:A with A >= 0, or FILE.py:NAME",
    )
    log_ratio_scale: Positive | None = Field(
        None, description="f-DPO: log ratio to the reference a unit of loss difference / 2; null: beta"
    )
    loss_space: LossSpace = Field("native", description="units of the losses: the network's own, epsilon or x0")

    @model_validator(mode="after")
    def _preference_has_a_loss(self) -> "DiffusionDPO":
        if self.divergence != "reverse_kl":
            from diffdistill.alignment.baselines import check_preference  # loads torch

            try:
                check_preference(self.divergence)
            except ConfigError as error:
                raise ValueError(f"method.{error}") from None
        if self.log_ratio_scale is not None and self.divergence == "reverse_kl":
            raise ValueError(
                "method.log_ratio_scale changes nothing with divergence=reverse_kl, where beta alone counts; leave it "
                "out, or set method.divergence"
            )
        return self


class PairLora(Lora):
    """Low-rank adapters (2106.09685), alpha equal to the rank, Gaussian start."""


class Align(Run):
    """`diffdistill align`: preference alignment of a text-to-image pipeline from pairs."""

    model: str = Field(description="folder or Hub id of a text-to-image pipeline")
    train_batch_size: Count = Field(16, description="pairs a step")
    micro_batch_size: Count | None = Field(None, description="pairs in one call of the network; null: all of a step's")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    update_in_backward: bool = Field(
        False, description="move each weight as soon as its gradient is known: no two gradients are held at once"
    )
    data: PairData
    evaluation: PairEvaluation = PairEvaluation()
    method: Annotated[MaPO | DiffusionDPO, Field(discriminator="name")]
    lora: PairLora | None = Field(None, description="train adapters only; null: all weights of the network")
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, betas=(0.9, 0.999), weight_decay=1e-2, max_grad_norm=1.0)

    @model_validator(mode="after")
    def _one_pass_without_clipping(self) -> "Align":
        no_part_above(self.micro_batch_size, self.train_batch_size)
        if self.update_in_backward and self.optimizer.max_grad_norm is not None:
            raise ValueError(
                "update_in_backward moves weights before the norm of all gradients is known; set "
                "optimizer.max_grad_norm=null"
            )
        if self.update_in_backward and self.micro_batch_size not in (None, self.train_batch_size):
            raise ValueError(
                f"update_in_backward takes a step in one backward pass, and micro_batch_size={self.micro_batch_size} "
                f"cuts up train_batch_size={self.train_batch_size}; set both to the same"
            )
        return self
