"""Epsilon Scaling of one network output, whatever the network predicts: an affine map."""

import math
from typing import Literal

import torch
from torch import Tensor

from diffdistill.errors import ConfigError

FlowMode = Literal["residual", "exact"]

# Below this part of signal in the state, x0 = (x - s eps) / alpha turns a scale of a thousandth into a picture of
# noise (zero-terminal-SNR schedules, flow at sigma = 1): such a step is left as it is.
MIN_SIGNAL = 1e-3

NAMES = {"flow_prediction": "flow", "original_sample": "sample"}


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
    """
    kind = NAMES.get(prediction_type, prediction_type)
    if not lam > 0 or not math.isfinite(lam):
        raise ConfigError(f"epsilon scaling divides by lambda = {lam}; lambda must be above 0 and finite")
    if flow_mode not in ("residual", "exact"):
        raise ConfigError(f"flow_mode '{flow_mode}' is unknown; use residual or exact")
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


def _unknown(kind: str, allowed: str) -> float:
    raise ConfigError(f"prediction type '{kind}' cannot be scaled; use {allowed}")


def _affine(out: Tensor, x: Tensor, lam: float, offset: float) -> Tensor:
    precise = torch.promote_types(out.dtype, torch.float32)
    scaled = out.to(precise) / lam
    if offset == 0:
        return scaled
    return scaled + (1 - 1 / lam) * offset * x.to(scaled.dtype)
