"""The choices that make a method of the one step: plain data, without torch and without a schema."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from diffdistill.divergences import Divergence, get_divergence
from diffdistill.errors import ConfigError
from diffdistill.matching.level_weights import get_level_weight, level_weight_names

Form = Literal["score_gap", "fisher"]
Features = Literal["teacher", "critic"]
Reals = Literal["data", "teacher"]
Guidance = Literal["inside", "outside"]


def _one_of(allowed: Any, name: str, given: str) -> None:
    """ConfigError where a choice is none of a Literal's."""
    if given not in get_args(allowed):
        raise ConfigError(f"{name} '{given}' is unknown; use {' or '.join(get_args(allowed))}")


@dataclass(frozen=True)
class Adversarial:
    """The discriminator: heads on features of a network.

    weight: lambda_G of the student's term, for a score gap averaged over C, H, W. features: whose they are. taps: the
    layers that they are outputs of. critic_weight: lambda_D beside the denoising loss, on the critic's features. r1:
    weight of R1 at the heads' inputs. mix: weight of `adaptive_mix`. reals: whose images the heads tell from the
    student's.
    Raises ConfigError for others.

    >>> from diffdistill.matching.settings import Choices, Ratio
    >>> f_distill = Choices("score_gap", divergence="forward_kl", adversarial=Adversarial(weight=0.0), ratio=Ratio())
    >>> f_distill.adversarial.taps  # weight 0: its heads there only tell the ratio
    ('mid_block',)
    """

    weight: float = 1e-3
    features: Features = "teacher"
    taps: tuple[str, ...] = ("mid_block",)
    critic_weight: float = 1e-2
    r1: float = 0.0
    mix: float = 0.0
    reals: Reals = "data"

    def __post_init__(self) -> None:
        _one_of(Features, "method.adversarial.features", self.features)
        _one_of(Reals, "method.adversarial.reals", self.reals)


@dataclass(frozen=True)
class Ratio:
    """How logits become density ratios r: bounds of r; bins of u in which E[r] is made 1, and that mean's memory.

    >>> import torch
    >>> from diffdistill.matching.ratio import RatioTracker
    >>> ratio = Ratio(clip=(0.1, 10.0))
    >>> log_r = RatioTracker(ratio.bins, ratio.decay, ratio.clip)(torch.tensor([-5.0, 0.0, 5.0]), u=torch.rand(3))
    >>> [round(r, 4) for r in log_r.exp().tolist()]
    [0.1, 1.0, 10.0]
    """

    clip: tuple[float, float] = (1e-2, 1e2)
    bins: int = 10
    decay: float = 0.98


@dataclass(frozen=True)
class Choices:
    """A row of the table: what distinguishes one method from another.

    form: the gap as it is (`losses.score_gap_gradient`) or the Fisher form (`losses.fisher_gradient`) with its alpha.
    divergence: h(r), from `divergences`; normalize: h divided by its mean over the batch; detach_ratio: r held
    constant. level_weight: w, from `level_weights`. adversarial: None for no discriminator; ratio: how its
    logits become r, None where the divergence needs none. guidance_scale: of the teacher, inside the gap or as a term
    of its own; guidance_rescale: phi of `process.rescaled`. critic_warmup: part of the run that trains the critic
    only. fisher_warmup: part of it, from the start, with alpha 1, reverse KL, no adversarial term.

    Raises ConfigError for choices that are not known or exclude each other.

    >>> Choices("fisher", level_weight="pseudo_huber", alpha=1.0).divergence  # SIM
    'reverse_kl'
    >>> Choices("score_gap", divergence="forward_kl")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: divergence 'forward_kl' needs a density ratio and there is no discriminator; ...
    """

    form: Form
    divergence: str | Divergence = "reverse_kl"
    level_weight: str = "dmd"
    alpha: float = 0.5
    normalize: bool = False
    detach_ratio: bool = False
    adversarial: Adversarial | None = None
    ratio: Ratio | None = None
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance: Guidance = "inside"
    critic_warmup: float = 0.0
    fisher_warmup: float = 0.0

    def __post_init__(self) -> None:
        _one_of(Form, "form", self.form)
        _one_of(Guidance, "method.guidance", self.guidance)
        if self.guidance_rescale and self.guidance == "outside":
            raise ConfigError(
                f"method.guidance_rescale is {self.guidance_rescale:g}, and method.guidance=outside never forms the "
                f"guided output that it rescales; set it to 0, or method.guidance=inside"
            )
        divergence = get_divergence(self.divergence)
        if divergence.needs_ratio and self.adversarial is None:
            raise ConfigError(
                f"divergence '{divergence.name}' needs a density ratio and there is no discriminator; "
                "set method.adversarial.weight (0 trains the ratio only), or use reverse_kl"
            )
        if divergence.needs_ratio and self.ratio is None:
            raise ConfigError(
                f"divergence '{divergence.name}' needs a density ratio and the method does not say how logits become "
                "one; give it a field `ratio: Ratio = Ratio()`, or use reverse_kl"
            )
        if self.form not in get_level_weight(self.level_weight).forms:
            raise ConfigError(
                f"level_weight '{self.level_weight}' weighs the squared score gap of a Fisher form; for the form "
                f"'{self.form}' take {', '.join(level_weight_names(self.form))}"
            )
