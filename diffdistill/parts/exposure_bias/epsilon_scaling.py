"""Epsilon Scaling (2308.15321): eps -> eps / lambda, whatever a network predicts: the law of lambda over the solver's
steps, the affine map of one output, and what a scheduler's `step` does with both.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.coordinates import coordinates, family, position, solver_step, table_coordinates

FlowMode = Literal["residual", "exact"]

# Below this part of signal in the state, x0 = (x - s eps) / alpha turns a scale of a thousandth into a picture of
# noise (zero-terminal-SNR schedules, flow at sigma = 1): such a step is left as it is.
MIN_SIGNAL = 1e-3

NAMES = {"flow_prediction": "flow", "original_sample": "sample"}


# ---- lambda


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

    >>> line = EpsilonScaleSchedule(b=1.005, k=0.001)
    >>> [round(line(index=i, num_steps=3, alpha=0.6, s=0.8), 4) for i in range(3)]
    [1.007, 1.006, 1.005]
    >>> knots = EpsilonScaleSchedule(knots=((-2.0, 1.01), (2.0, 1.03)))
    >>> round(knots(index=0, num_steps=3, alpha=0.5**0.5, s=0.5**0.5), 4)  # at log-SNR 0
    1.02
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


def _require_positive(value: float, name: str) -> None:
    if not value > 0:
        raise ConfigError(f"epsilon scaling divides by lambda, and {name} gives {value:g}; lambda must be above 0")


def _checked_knots(knots: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple((float(place), float(value)) for place, value in knots)
    except (TypeError, ValueError):
        raise ConfigError(f"epsilon scaling knots {knots!r} are not (log_snr, lambda) pairs") from None
    positions = [place for place, _ in pairs]
    if not pairs or not all(map(math.isfinite, positions)) or sorted(set(positions)) != positions:
        raise ConfigError(f"epsilon scaling knots need finite log_snr values that increase, got {positions}")
    for place, value in pairs:
        _require_positive(value, f"the knot at log_snr {place:g}")
        if not math.isfinite(value):
            raise ConfigError(f"the epsilon scaling knot at log_snr {place:g} is {value}; give a finite lambda")
    return pairs


def _interpolate(knots: tuple[tuple[float, float], ...], where: float) -> float:
    if where <= knots[0][0]:
        return knots[0][1]
    for (left, below), (right, above) in itertools.pairwise(knots):
        if where <= right:
            return below + (above - below) * (where - left) / (right - left)
    return knots[-1][1]


# ---- one output


def scale_model_output(
    out: Tensor,
    x: Tensor,
    lam: float,
    alpha: float,
    s: float,
    prediction_type: str,
    *,
    sigma_data: float | None = None,
    flow_mode: FlowMode = "residual",
) -> Tensor:
    """The output that means `eps / lam` where `out` means `eps`, for the state `x = alpha x0 + s eps`.

    With k = 1 - 1 / lam and n = sqrt(alpha^2 + s^2) (2308.15321, eq. 10, carried through each parametrisation):

    - epsilon: out / lam
    - sample (x0): out / lam + k x / alpha
    - v_prediction, v = (alpha eps - s x0) / n: out / lam - k (s / alpha) x / n
    - flow, u = eps - x0: exact: out / lam - k x / alpha; residual: out / lam, which scales x - D instead of eps and
      stays small where alpha vanishes
    - `sigma_data` given: the raw network F of EDM, D = c_skip x + c_out F (2206.00364, Table 1; alpha = 1, s = sigma):
      F / lam + k (1 - c_skip) / c_out x. "v_prediction" then has c_out negative, as in diffusers' EDM schedulers

    out: `(B, C, H, W)`, or `(B, 2C, H, W)` with learned variances in the second half, which pass untouched;
    x: `(B, C, H, W)`. Half precision is computed and returned in float32 (in bf16, 1.001 is no change at all).
    `lam == 1` returns `out` itself, and so does a state whose signal alpha / n is under 1e-3 (but for residual flow).
    Raises ConfigError for lam <= 0 and for names it does not know.

    >>> x0, eps, alpha, s = torch.tensor([1.0, 2.0, 0.6, 0.8])[:, None, None, None, None]
    >>> x = alpha * x0 + s * eps
    >>> scaled_x0 = scale_model_output(x0, x, 1.25, 0.6, 0.8, "sample")
    >>> round(((x - alpha * scaled_x0) / s).item(), 4)  # eps / 1.25
    1.6
    """
    kind = NAMES.get(prediction_type, prediction_type)
    if not lam > 0 or not math.isfinite(lam):
        raise ConfigError(f"epsilon scaling divides by lambda = {lam}; lambda must be above 0 and finite")
    _check_flow_mode(flow_mode)
    offset = _offset(kind, alpha, s, sigma_data, flow_mode)
    if lam == 1 or (_signal(alpha, s) < MIN_SIGNAL and not (kind == "flow" and flow_mode == "residual")):
        return out
    channels = x.shape[1]
    if out.shape[1] == 2 * channels:
        mean, variance = out.split(channels, dim=1)
        scaled = _affine(mean, x, lam, offset)
        return torch.cat([scaled, variance.to(scaled.dtype)], dim=1)
    return _affine(out, x, lam, offset)


def scale_denoised(denoised: Tensor, x: Tensor, lam: float) -> Tensor:
    """`D' = x - (x - D) / lam`: Epsilon Scaling of a denoiser in VE coordinates, x = x0 + sigma eps; same shapes."""
    if lam == 1:
        return denoised
    return _affine(denoised, x, lam, 1.0)


def _signal(alpha: float, s: float) -> float:
    return alpha / math.hypot(alpha, s)


def _offset(kind: str, alpha: float, s: float, sigma_data: float | None, flow_mode: FlowMode) -> float:
    """The factor c of `out / lam + k c x`; zero alpha is caught by the caller, who then does not use it."""
    safe = alpha if alpha > 0 else math.inf
    if sigma_data is not None:
        # (1 - c_skip) / |c_out| = sigma / (sigma_data sqrt(sigma^2 + sigma_data^2))
        size = s / (sigma_data * math.hypot(s, sigma_data))
        return {"epsilon": size, "v_prediction": -size}.get(kind) or _unknown(kind, "epsilon or v_prediction")
    if kind == "epsilon":
        return 0.0
    if kind == "sample":
        return 1 / safe
    if kind == "v_prediction":
        return -s / (safe * math.hypot(alpha, s))
    if kind == "flow":
        return -1 / safe if flow_mode == "exact" else 0.0
    return _unknown(kind, "epsilon, sample, v_prediction or flow")


def _check_flow_mode(name: str) -> None:
    if name not in ("residual", "exact"):
        raise ConfigError(f"flow_mode '{name}' is unknown; use residual or exact")


def _unknown(kind: str, allowed: str) -> float:
    raise ConfigError(f"prediction type '{kind}' cannot be scaled; use {allowed}")


def _affine(out: Tensor, x: Tensor, lam: float, offset: float) -> Tensor:
    precise = torch.promote_types(out.dtype, torch.float32)
    scaled = out.to(precise) / lam
    if offset == 0:
        return scaled
    return scaled + (1 - 1 / lam) * offset * x.to(scaled.dtype)


class EpsilonScaling:
    """What one scheduler does to one network output: `eps -> eps / lambda` (2308.15321, eq. 10)."""

    def __init__(self, schedule: EpsilonScaleSchedule, flow_mode: str):
        _check_flow_mode(flow_mode)
        self.schedule = schedule
        self.flow_mode = flow_mode

    def __call__(
        self, scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        """The scaled output, or `model_output` itself where lambda is 1; a denoised image in `extra` is scaled too."""
        if extra.get("per_token_timesteps") is not None:
            return self._per_token(model_output, sample)
        index = position(scheduler, timestep)
        kind = family(scheduler)
        alpha, s = table_coordinates(scheduler, int(timestep)) if kind == "table" else coordinates(scheduler, index)
        step, num_steps = solver_step(scheduler, index)
        lam = self.schedule(index=step, num_steps=num_steps, alpha=alpha, s=s)
        if extra.get("pred_original_sample") is not None:  # EDMEulerScheduler takes a denoised image in place of F
            extra["pred_original_sample"] = scale_denoised(extra["pred_original_sample"], sample, lam)
        config = scheduler.config
        return scale_model_output(
            model_output,
            sample,
            lam,
            alpha,
            s,
            config.get("prediction_type", "flow"),
            sigma_data=config.sigma_data if kind == "edm" else None,
            flow_mode=self.flow_mode,  # type: ignore[arg-type]  # checked above
        )

    def _per_token(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """Video models that noise each token differently have no single level: only a plain division has a meaning."""
        if self.schedule.kind != "constant" or self.flow_mode != "residual":
            raise ConfigError(
                "a pipeline with per-token time steps has no single noise level; use a constant b with "
                "flow_mode='residual'"
            )
        return scale_model_output(model_output, sample, self.schedule.b, 0.0, 1.0, "flow")
