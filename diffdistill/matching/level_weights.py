"""Positive weights on the score gap: functions (x0, teacher_x0, critic_x0) -> (B, 1, 1, 1), and EDM's, of the level.

Any positive function of the level alone leaves the objective a divergence; a weight that depends on the sample does so
only approximately (or, attached in the Fisher form, makes another one: the pseudo-Huber distance of SIM).
"""

import torch
from torch import Tensor, nn

from diffdistill.matching.ratio import LevelMean
from diffdistill.process import EDM, Flow, LevelLaw, Process


def dmd_weight(x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor | None = None, *, floor: float = 1e-5) -> Tensor:
    """DMD's per-sample normaliser w = 1 / max(mean_{C,H,W} |x0 - D_T|, floor), detached (2311.18828).

    x0, teacher_x0: (B, C, H, W). Returns (B, 1, 1, 1). Its mean over a sample needs many dimensions: for a few, 1/|x0
        - D_T| has no expectation; take `LevelNormaliser` there. `critic_x0` is ignored.
    """
    with torch.no_grad():
        distance = (x0 - teacher_x0).abs().flatten(1).mean(1)
        return _per_sample(1 / distance.clamp_min(floor), x0)


def pseudo_huber_weight(x0: Tensor, teacher_x0: Tensor, critic_x0: Tensor, *, c: float | None = None) -> Tensor:
    """w = 1 / sqrt(||g||^2 + c^2), g = D_F - D_T, the norm over the whole sample (2410.16794).

    Attached to its inputs: in the Fisher form with alpha = 1 the loss is then that of the pseudo-Huber distance
    sqrt(||g||^2 + c^2) - c, and the weight's own dependence on x is part of it. `c` is in units of x0; None: 0.01
    sqrt(C H W). Returns (B, 1, 1, 1).
    """
    if c is None:
        c = 0.01 * x0[0].numel() ** 0.5
    squared_norm = (critic_x0 - teacher_x0).square().flatten(1).sum(1)
    return _per_sample((squared_norm + c * c).rsqrt(), x0)


def expansion_weight(law: LevelLaw, u: Tensor) -> Tensor:
    """w = (d sigma / du) / sigma^3 at u (B,), for the Fisher form with alpha = 1/2 (2505.20755, Theorem 3.1; VE).

    D_f(p || q) = D_f at the highest level + integral of sigma E[h(r) ||grad log q - grad log p||^2] d(sigma), and with
    the score gap (D_F - D_T) / sigma^2 that is E[h(r) ||D_F - D_T||^2] d(sigma) / sigma^3. The law's density of sigma,
    du / d(sigma), is divided out, so the objective is the same under every law. Returns (B,).
    """
    sigma = law.sigma(u)
    return law.slope(u) / sigma**3


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 (2206.00364, Table 1). sigma: (B,). Returns (B,)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def native_weight(process: Process, sigma: Tensor) -> Tensor:
    """The weight that makes the x0 error the squared error of the network's own output (2202.00512, section 4).

    epsilon: 1 / sigma^2; v: 1 + 1 / sigma^2; flow: (1 + 1 / sigma)^2; sample: 1; EDM: lambda(sigma), `edm_weight`.
    sigma: (B,). Returns (B,).
    """
    if isinstance(process, EDM):
        return edm_weight(sigma, process.sigma_data)
    if isinstance(process, Flow):
        return (1 + 1 / sigma) ** 2
    return {"epsilon": 0.0, "v_prediction": 1.0}[process.kind] + sigma**-2 if process.kind != "sample" else sigma**0


class LevelNormaliser(nn.Module):
    """DMD's normaliser in expectation: w(u) = 1 / E[ mean |x0 - D_T| | level ], a function of the level only.

    The limit of `dmd_weight` for many dimensions; with it the Fisher form with alpha = 1/2 is exact. The expectation
    is an average over steps, kept per bin of the level sampler's own uniform variable u in [0, 1] in buffers (so in
    the checkpoint) and shared by all ranks.
    """

    def __init__(self, bins: int = 32, decay: float = 0.99, floor: float = 1e-5):
        super().__init__()
        self.floor = floor
        self.distance = LevelMean(bins, decay)

    def forward(self, x0: Tensor, teacher_x0: Tensor, u: Tensor) -> Tensor:
        """x0, teacher_x0: (B, C, H, W); u: (B,). Returns (B, 1, 1, 1), detached; training mode counts the batch."""
        with torch.no_grad():
            distance = (x0 - teacher_x0).abs().flatten(1).mean(1)
            if self.training:
                self.distance.update(distance, u)
            return _per_sample(1 / self.distance(u).clamp_min(self.floor), x0)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
