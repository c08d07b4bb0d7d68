"""Sections of what a consistency model is trained on, which a whole run, its start, or a term of it may have."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from diffdistill.consistency.settings import HUBER, Derivative, Discrete
from diffdistill.errors import ConfigError
from diffdistill.optimizers import Muon, Optimizer
from diffdistill.section import Count, Curvature, Fraction, Positive, Section


class ByLevels(Section):
    """Neighbouring levels of a trajectory give one image (2303.01469, 2310.14189)."""

    name: Literal["consistency"] = "consistency"
    intervals: tuple[Count, Count] = Field(
        (10, 1280), description="between levels: at the start of training and at its end, doubled in between"
    )
    grid: Literal["karras", "time"] = Field(
        "karras",
        description="levels: karras, those of EDM, by a lognormal law; time, even in the network's own time and drawn "
        "alike (2310.04378), which text-to-image teachers want",
    )
    rho: Curvature = Field(7.0, description="curvature of the levels (2206.00364, eq. 5)")
    mean: float = Field(-1.1, description="law of the levels: mean of ln sigma")
    std: Positive = Field(2.0, description="law of the levels: standard deviation of ln sigma")
    huber: Annotated[float, Field(ge=0)] = Field(HUBER, description="c of the pseudo-Huber distance, over sqrt(C H W)")
    solver: Literal["heun", "euler"] = Field("heun", description="a teacher's step from level to level")

    @field_validator("intervals")
    @classmethod
    def _grow(cls, intervals: tuple[int, int]) -> tuple[int, int]:
        try:
            Discrete(intervals)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return intervals


class ByDerivative(Section):
    """The derivative along a trajectory vanishes: sCM (2410.11081)."""

    name: Literal["scm"] = "scm"
    mean: float = Field(-1.0, description="law of the levels: mean of ln sigma")
    std: Positive = Field(1.4, description="law of the levels: standard deviation of ln sigma")
    tangent_warmup: Fraction = Field(0.1, description="part of training in which the network's own derivative sets in")
    tangent_constant: Positive = Field(0.1, description="c of the normalisation g / (||g|| + c)")
    derivative: Derivative = Field(
        "central",
        description="of the network: central, a difference of two passes; forward: forward-mode, exact, where the "
        "network allows it",
    )
    difference: Annotated[float, Field(ge=1e-3, le=1)] = Field(
        0.1, description="central: step in ln sigma, above the period of the fastest sine of the network's time"
    )


AnyObjective = Annotated[ByLevels | ByDerivative, Field(discriminator="name")]


class ConsistencyTerm(Section):
    """A consistency loss on the data's images, beside distribution matching."""

    weight: Positive = Field(1.0, description="of its gradient at the weights, beside that of the matching")
    objective: AnyObjective = ByDerivative()


class ConsistencyStart(Section):
    """Consistency distillation as the first phase of a run."""

    steps: Count = Field(
        1000, description="the first steps of the run; as many as max_train_steps: a first stage; more: all but one"
    )
    objective: AnyObjective = ByLevels()
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=20)
    muon: Muon | None = Field(
        None, description="Muon for the weights of inner layers, beside AdamW for the rest; null: AdamW for all"
    )
