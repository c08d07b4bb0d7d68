"""The divisor lambda of Epsilon Scaling as a function of the solver's step: pure data that goes into a config."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffdistill.errors import ConfigError


def log_snr(alpha: float, s: float) -> float:
    """`ln(alpha^2 / s^2)` of a state `alpha x0 + s eps`; infinite at the ends."""
    if s <= 0:
        return math.inf
    return -math.inf if alpha <= 0 else 2 * math.log(alpha / s)


@dataclass(frozen=True)
class EpsilonScaleSchedule:
    """lambda of `eps' = eps / lambda` (Epsilon Scaling, 2308.15321), for one of three laws.

    - constant: lambda = b (k = 0, no knots)
    - linear: lambda = b + k i, where `i` counts the solver's steps from the *clean* end (i = 0 is the last step
      taken), as the paper and its code do, so that published pairs can be typed in; the factor is largest at pure
      noise. k belongs to one number of steps: at N' steps the same slope over the noise levels is k N / N'
    - knots: `(log_snr, lambda)` pairs, piecewise linear in ln(alpha^2 / s^2), constant outside; they belong to noise
      levels and not to steps, so they keep their meaning at another number of steps. b and k stay at 1 and 0

    Raises ConfigError for lambda <= 0 and for knots that do not increase.
    """

    b: float = 1.0
    k: float = 0.0
    knots: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("b", self.b), ("k", self.k)):
            if not math.isfinite(value):
                raise ConfigError(f"epsilon scaling {name} = {value} is not a finite number; 1.005 is a usual b")
        _require_positive(self.b, "b")
        if self.knots is None:
            return
        if (self.b, self.k) != (1.0, 0.0):
            raise ConfigError("epsilon scaling takes knots, or b and k, not both; leave b at 1 and k at 0 with knots")
        object.__setattr__(self, "knots", _checked_knots(self.knots))

    @property
    def kind(self) -> str:
        if self.knots is not None:
            return "logsnr_knots"
        return "linear" if self.k else "constant"

    @property
    def is_identity(self) -> bool:
        """True where lambda is 1 at every step, whatever the schedule."""
        values = (self.b,) if self.knots is None else tuple(value for _, value in self.knots)
        return self.k == 0 and all(value == 1 for value in values)

    def __call__(self, *, index: int, num_steps: int, alpha: float, s: float) -> float:
        """lambda of the solver's step `index` (0 is the first step taken, at the noisy end) of `num_steps`.

        `alpha`, `s`: coordinates of the state that the network saw, x = alpha x0 + s eps. Raises ConfigError where
        the line reaches zero.
        """
        if self.knots is not None:
            return _interpolate(self.knots, log_snr(alpha, s))
        value = self.b + self.k * (num_steps - 1 - index)
        _require_positive(value, f"b + k i at step {index} of {num_steps}")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        return {**data, "knots": self.knots and [list(pair) for pair in self.knots]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EpsilonScaleSchedule":
        """Inverse of `to_dict`. Raises ConfigError for keys it does not know."""
        unknown = sorted(set(data) - {"b", "k", "knots"})
        if unknown:
            raise ConfigError(f"epsilon scaling has no setting '{unknown[0]}'; it has b, k and knots")
        return cls(**data)


def _require_positive(value: float, name: str) -> None:
    if not value > 0:
        raise ConfigError(f"epsilon scaling divides by lambda, and {name} gives {value:g}; lambda must be above 0")


def _checked_knots(knots: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple((float(position), float(value)) for position, value in knots)
    except (TypeError, ValueError):
        raise ConfigError(f"epsilon scaling knots {knots!r} are not (log_snr, lambda) pairs") from None
    positions = [position for position, _ in pairs]
    if not pairs or not all(map(math.isfinite, positions)) or sorted(set(positions)) != positions:
        raise ConfigError(f"epsilon scaling knots need finite log_snr values that increase, got {positions}")
    for position, value in pairs:
        _require_positive(value, f"the knot at log_snr {position:g}")
        if not math.isfinite(value):
            raise ConfigError(f"the epsilon scaling knot at log_snr {position:g} is {value}; give a finite lambda")
    return pairs


def _interpolate(knots: tuple[tuple[float, float], ...], where: float) -> float:
    if where <= knots[0][0]:
        return knots[0][1]
    for (left, below), (right, above) in itertools.pairwise(knots):
        if where <= right:
            return below + (above - below) * (where - left) / (right - left)
    return knots[-1][1]
