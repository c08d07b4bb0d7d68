"""What a method is: a section of settings with the choices that are fixed, and the sections that methods share.

A method is one file: its page (equation, paper, departures), a subclass of `Method` with its fixed choices as class
variables and its defaults as fields, and `METHOD = ThatClass`. The fields of `matching.settings.Choices` are the
choices there are. From outside the package a config says `method.name: FILE.py:CLASS`.
"""

import warnings
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from diffdistill.errors import ConfigError
from diffdistill.matching.level_weights import LEVEL_WEIGHTS, level_weight_names
from diffdistill.matching.settings import Choices, Form
from diffdistill.methods.objectives import ConsistencyTerm
from diffdistill.optimizers import Optimizer
from diffdistill.rewards.kinds import allowed_rewards
from diffdistill.section import Count, Fraction, OneOf, Positive, Section, plain


class Adversarial(Section):
    """The discriminator: heads on features of a network, at the levels of the score gap.

    >>> from diffdistill.methods.dmd2 import DMD2
    >>> DMD2(adversarial=Adversarial(weight=1e-2, features="critic")).choices().adversarial  # as in DMD2's paper
    Adversarial(weight=0.01, features='critic', taps=('mid_block',), critic_weight=0.01, r1=0.0, mix=0.0, reals='data')
    """

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
    mix: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="weight of AdaptiveMix (2303.01559): the heads' maps of what lies between a real and a student's "
        "image lie between theirs; half as many images more in its pass",
    )
    reals: Literal["data", "teacher"] = Field(
        "data",
        description="whose images the student's are told from; teacher: those of the pairs of student.regression, "
        "with the conditions they were made for, so that prompts alone are enough (2606.12575)",
    )
    optimizer: Optimizer = Optimizer(learning_rate=1e-3)

    @field_validator("taps")
    @classmethod
    def _each_once(cls, taps: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(taps)) < len(taps):
            raise ValueError(f"taps are {', '.join(taps)}; name each layer once, a head reads it")
        return taps


class Ratio(Section):
    """How the discriminator's logits become density ratios r = p_teacher / p_student.

    >>> from diffdistill.methods.f_distill import FDistill
    >>> FDistill(ratio=Ratio(clip=(0.1, 20.0))).choices().ratio  # the bounds of 2502.15681
    Ratio(clip=(0.1, 20.0), bins=10, decay=0.98)
    """

    clip: tuple[Positive, Positive] = Field((1e-2, 1e2), description="bounds of r")
    bins: Count = Field(10, description="bins of the level law's uniform variable in which E[r] is made 1")
    decay: Fraction = Field(0.98, description="memory of that mean")


class Reward(Section):
    """What a student is rewarded for, beside staying near its teacher; see docs/rewards.md.

    >>> from diffdistill.methods.diff_instruct_star import DiffInstructStar
    >>> DiffInstructStar(reward=Reward(sum={"pickscore": 1.0, "aesthetic": 0.5}, weight=0.1)).reward.sum
    {'pickscore': 1.0, 'aesthetic': 0.5}
    >>> Reward(weight=0.1)
    Traceback (most recent call last):
    pydantic_core._pydantic_core.ValidationError: 1 validation error for Reward
      Value error, method.reward has neither 'name' nor 'sum'; give one reward's name, or the weights of several ...
    """

    name: str | None = Field(None, description=allowed_rewards(of_package=True))
    sum: dict[str, float] | None = Field(None, description="in place of name: weights of several rewards, by name")
    combine: Literal["sum", "worst", "uncertainty"] = Field(
        "sum", description="of several: their sum; the least of them (WCO); their mean less their variance (UWO)"
    )
    scales: dict[str, tuple[float, Positive]] | None = Field(
        None,
        description="mean and standard deviation of each reward's scores, which put them on one scale; see "
        "rewards.measure_scales; null: each in its own units, of a sum alone",
    )
    disagreement: Annotated[float, Field(ge=0)] = Field(
        0.5, description="uncertainty: lambda, the weight of the variance between the rewards"
    )
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

    @model_validator(mode="after")
    def _compared_on_one_scale(self) -> "Reward":
        members, scales = self.sum or {}, self.scales or {}
        if len(members) < 2 and (self.combine != "sum" or scales):
            raise ValueError(
                f"method.reward.combine={self.combine} and scales compare rewards, and there is one; name two or more "
                f"in method.reward.sum, or leave both out"
            )
        missing = [name for name in members if name not in scales]
        if missing and (self.combine != "sum" or scales):
            raise ValueError(
                f"method.reward.scales lacks {missing[0]}; measure mean and standard deviation of each reward first, "
                f"with diffdistill.rewards.measure_scales"
            )
        return self


class Smoothness(Section):
    """Step-wise variation (2312.04410), StyleGAN2's path length on z: equal steps of noise move an image equally far.

    >>> from diffdistill.methods.dmd2 import DMD2
    >>> DMD2(smoothness=Smoothness(weight=0.1)).smoothness.every
    4
    """

    weight: Positive = Field(1.0, description="of E (l - a)^2, l the path length, a its running mean")
    every: Count = Field(4, description="steps between two of the term, each so many times as heavy (1912.04958)")
    decay: Fraction = Field(0.01, description="part of the running mean that a batch makes")


def _meanings(form: Form) -> str:
    return "; ".join(f"{name}: {LEVEL_WEIGHTS[name].meaning}" for name in level_weight_names(form)) + "; FILE.py:NAME"


GapWeight = Annotated[
    str, OneOf(level_weight_names("score_gap"), files=True), Field(description=_meanings("score_gap"))
]
FisherWeight = Annotated[str, OneOf(level_weight_names("fisher"), files=True), Field(description=_meanings("fisher"))]
DivergenceName = str  # `Choices` knows which there are


class Distillation(Section):
    """What every way to make a student of a teacher has.

    >>> from diffdistill.methods.consistency import Consistency
    >>> Consistency(guidance_scale=2.0).guidance_scale  # folded into the student
    2.0
    """

    from_files: ClassVar[bool] = True  # one may be FILE.py:CLASS as well
    training: ClassVar[str | None] = None  # what a student's card says it was trained by; None: distribution matching

    name: str
    guidance_scale: Annotated[float, Field(ge=0)] = Field(1.0, description="classifier-free guidance of the teacher")
    guidance_rescale: Fraction = Field(
        0.0,
        description="phi: part of the way of the guided output to the spread of the conditional one (2305.08891, "
        "eq. 16; 0.7 there), against colours that are too strong; 0: none",
    )

    @classmethod
    def registered_name(cls) -> str:
        return cls.model_fields["name"].default


class Method(Distillation):
    """What the methods of distribution matching share; one sets `name` and `form`, and any other choice, fixed or with
    a default.

    A field that `Choices` has too is that choice; a class variable is a choice that users cannot change.

    >>> from typing import ClassVar, Literal
    >>> class Plain(Method):
    ...     form: ClassVar = "score_gap"
    ...     name: Literal["plain"] = "plain"
    ...     level_weight: Literal["none"] = "none"
    >>> choices = Plain(guidance_scale=2.0).choices()
    >>> choices.form, choices.level_weight, choices.guidance_scale
    ('score_gap', 'none', 2.0)
    """

    form: ClassVar[Form]

    level_weight: FisherWeight = "dmd"
    float32_gap: bool = Field(
        False,
        description="teacher and critic in float32 where their difference is taken, whatever mixed_precision says",
    )
    adversarial: Adversarial | None = Field(None, description="a discriminator on real data; null: none (data-free)")
    consistency: ConsistencyTerm | None = Field(
        None, description="a consistency loss beside the matching, so that the student keeps its trajectories"
    )
    smoothness: Smoothness | None = Field(
        None, description="a one-step student whose images move evenly with their noise; two derivatives a step"
    )

    def choices(self) -> Choices:
        """The row of the table that these settings are."""
        return plain(self, Choices)

    @model_validator(mode="after")
    def _possible(self) -> "Method":
        try:
            plain(self, Choices)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


class Rewarded(Method):
    """What the methods that follow a reward share; `plain_method`: what they are without reward and guidance.

    >>> from typing import ClassVar, Literal
    >>> from diffdistill.methods.base import Reward
    >>> class Mine(Rewarded):
    ...     form: ClassVar = "fisher"
    ...     plain_method: ClassVar = "sid"
    ...     name: Literal["mine"] = "mine"
    >>> method = Mine(reward=Reward(name="classifier", weight=0.1), guidance="outside")
    >>> method.choices().guidance, method.reward.weight
    ('outside', 0.1)
    """

    plain_method: ClassVar[str]

    reward: Reward | None = Field(None, description="null: none but the implicit one of guidance")
    guidance: Literal["inside", "outside"] = Field(
        "inside",
        description="inside: the gap to the guided teacher; outside: the gap to the plain one, and a linear term",
    )

    def choices(self) -> Choices:
        if self.reward is None and self.guidance_scale == 1.0:
            warnings.warn(
                f"{self.name} without method.reward and without guidance is {self.plain_method}; give one of them.",
                stacklevel=2,
            )
        return super().choices()
