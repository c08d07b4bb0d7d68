"""The numbers of the two forms: plain data, without torch and without a schema."""

from dataclasses import dataclass
from typing import Literal

from diffdistill.errors import ConfigError

Derivative = Literal["central", "forward"]
HUBER = 0.00054  # c / sqrt(C H W), 2310.14189, section 3.3
MOST = 10**6  # intervals: of more, neighbouring levels come to be one number in float32


@dataclass(frozen=True)
class Discrete:
    """intervals: between levels, at the start of training and at its end, doubled in between at equal distances.
    grid: karras, levels of curvature rho, drawn by a lognormal law of this mean and std and weighted by one over their
    distance; time, even in the network's own time, drawn and weighted alike. huber: c / sqrt(C H W). solver: a
    teacher's step.
    """

    intervals: tuple[int, int] = (10, 1280)
    grid: Literal["karras", "time"] = "karras"
    rho: float = 7.0
    mean: float = -1.1
    std: float = 2.0
    huber: float = HUBER
    solver: Literal["heun", "euler"] = "heun"

    def __post_init__(self) -> None:
        first, last = self.intervals
        if not 1 <= first <= last <= MOST:
            raise ConfigError(
                f"intervals is {first}, {last}; give the number between levels at the start, 1 or more, and at the "
                f"end, as many or more, up to {MOST}"
            )


@dataclass(frozen=True)
class Continuous:
    """mean, std: of ln sigma. tangent_warmup: part of the phase in which r rises. tangent_constant: c. derivative: how
    dF/d ln sigma is taken; difference: step in ln sigma of the central one.
    """

    mean: float = -1.0
    std: float = 1.4
    tangent_warmup: float = 0.1
    tangent_constant: float = 0.1
    derivative: Derivative = "central"
    difference: float = 0.1
