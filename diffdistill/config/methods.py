"""Settings of the distribution-matching methods, a class each, and of their parts."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from diffdistill.config.parts import Count, Fraction, Optimizer, Positive, Section


class Adversarial(Section):
    """The discriminator: heads on features of a network, at the levels of the score gap."""

    weight: Annotated[float, Field(ge=0)] = Field(
        1e-3, description="lambda_G, in the papers' convention (score gap: mean over C, H, W)"
    )
    features: Literal["teacher", "critic"] = Field(
        "teacher", description="whose features; critic, as in DMD2's paper, trains the critic too"
    )
    taps: tuple[str, ...] = Field(
        ("mid_block",), min_length=1, description="layers of the network whose outputs the heads read"
    )
    critic_weight: Annotated[float, Field(ge=0)] = Field(
        1e-2, description="lambda_D beside the denoising loss, with features: critic"
    )
    r1: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the R1 penalty at the heads' inputs, on noised real images (features in rms units)"
    )
    optimizer: Optimizer = Optimizer(learning_rate=1e-3)

    @field_validator("taps")
    @classmethod
    def _each_once(cls, taps: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(taps)) < len(taps):
            raise ValueError(f"taps are {', '.join(taps)}; name each layer once, a head reads it")
        return taps


class Ratio(Section):
    """How the discriminator's logits become density ratios r = p_teacher / p_student."""

    clip: tuple[Positive, Positive] = Field((1e-2, 1e2), description="bounds of r")
    bins: Count = Field(10, description="bins of the level law's uniform variable in which E[r] is made 1")
    decay: Fraction = Field(0.98, description="memory of that mean")


GapWeight = Literal["none", "dmd", "dmd_level", "pseudo_huber"]
LevelWeight = Literal["none", "dmd", "dmd_level", "pseudo_huber", "expansion"]
WEIGHT_HELP = (
    "none: 1; dmd: 1 / mean|x0 - D_T| per sample; dmd_level: its expectation per level; pseudo_huber: 1 / "
    "sqrt(||g||^2 + c^2)"
)
FISHER_HELP = WEIGHT_HELP + "; expansion: d(sigma) / sigma^3, Uni-Instruct's own, whatever the level law"


class Method(Section):
    """What all distribution-matching methods share."""

    name: str
    level_weight: LevelWeight = Field("dmd", description=WEIGHT_HELP)
    guidance_scale: Annotated[float, Field(ge=0)] = Field(1.0, description="classifier-free guidance of the teacher")
    float32_gap: bool = Field(
        False,
        description="teacher and critic in float32 where their difference is taken, whatever mixed_precision says",
    )
    adversarial: Adversarial | None = Field(None, description="a discriminator on real data; null: none (data-free)")


class DiffInstruct(Method):
    """2305.18455: reverse KL at every level, weight 1."""

    name: Literal["diff_instruct"]
    level_weight: GapWeight = Field("none", description=WEIGHT_HELP)


class DMD2(Method):
    """2405.14867: reverse KL with DMD's normaliser, an adversarial term, two time scales."""

    name: Literal["dmd2"]
    level_weight: GapWeight = Field("dmd", description=WEIGHT_HELP)
    adversarial: Adversarial | None = Adversarial()


class FDistill(Method):
    """2502.15681: the score gap weighted by h(r) of an f-divergence."""

    name: Literal["f_distill"]
    level_weight: GapWeight = Field("dmd", description=WEIGHT_HELP)
    divergence: str = "jensen_shannon"
    adversarial: Adversarial | None = Adversarial()
    ratio: Ratio = Ratio()


class SiD(Method):
    """2404.04057: Fisher form with DMD's normaliser; alpha 0.5 is the Fisher divergence, 1 is SIM; adversarial makes
    it SiDA.
    """

    name: Literal["sid"]
    level_weight: LevelWeight = Field("dmd", description=FISHER_HELP)
    alpha: float = Field(1.0, description="0.5 to 1; above, a student broader than the teacher runs away")


class SIM(Method):
    """2410.16794: Fisher form, alpha 1, pseudo-Huber distance."""

    name: Literal["sim"]
    level_weight: LevelWeight = Field("pseudo_huber", description=FISHER_HELP)


class UniInstruct(Method):
    """2505.20755: the expanded f-divergence: Fisher form, alpha 1/2, weighted by h(r) with r attached."""

    name: Literal["uni_instruct"]
    level_weight: LevelWeight = Field("dmd", description=FISHER_HELP)
    divergence: str = "forward_kl"
    adversarial: Adversarial | None = Adversarial()
    ratio: Ratio = Ratio()
    critic_warmup: Fraction = Field(
        0.05, description="part of the run that trains the critic and the discriminator only"
    )
    fisher_warmup: Fraction = Field(
        0.2, description="part of the run, from the start, without divergence and adversarial term (SIM)"
    )
    detach_ratio: bool = Field(False, description="ablation: the released code's form, wrong in the scale direction")


class Reward(Section):
    """What a student is rewarded for, beside staying near its teacher; see docs/rewards.md."""

    name: str | None = Field(
        None,
        description="pickscore, imagereward, hps_v2, clip, aesthetic, classifier, NAME:FOLDER, FILE.py:function",
    )
    sum: dict[str, float] | None = Field(None, description="in place of name: weights of several rewards, by name")
    weight: Annotated[float, Field(ge=0)] = Field(
        description="alpha, in the papers' convention (score gap: mean over C, H, W)"
    )
    class_prompts: tuple[str, ...] | None = Field(
        None, description="text of each class, for a reward that reads texts and a class-conditional teacher"
    )
    batch_size: Count = Field(16, description="images at a time through the reward")

    @model_validator(mode="after")
    def _one_source(self) -> "Reward":
        if (self.name is None) == (not self.sum):
            given = "both 'name' and 'sum'" if self.sum else "neither 'name' nor 'sum'"
            raise ValueError(f"method.reward has {given}; give one reward's name, or the weights of several")
        return self


class Rewarded(Method):
    """What the two methods that follow a reward share."""

    reward: Reward | None = Field(None, description="null: none but the implicit one of guidance")
    guidance: Literal["inside", "outside"] = Field(
        "inside",
        description="inside: the gap to the guided teacher; outside: the gap to the plain one, and a linear term",
    )


class DiffInstructPP(Rewarded):
    """2410.18881: a reward and reverse KL to the teacher."""

    name: Literal["diff_instruct_pp"]
    level_weight: GapWeight = Field("none", description=WEIGHT_HELP)


class DiffInstructStar(Rewarded):
    """2410.20898: a reward and SIM's score-based divergence to the teacher."""

    name: Literal["diff_instruct_star"]
    level_weight: LevelWeight = Field("pseudo_huber", description=FISHER_HELP)


Methods = Annotated[
    DiffInstruct | DiffInstructPP | DiffInstructStar | DMD2 | FDistill | SiD | SIM | UniInstruct,
    Field(discriminator="name"),
]
