"""sCM: consistency in continuous time (2410.11081), the derivative of f along the trajectory in place of a difference.

With tan t = sigma / s_d, the state x = cos(t) x_t = cos(t) x0 + sin(t) z (z of spread s_d) and f = cos(t) x - sin(t)
s_d F:

    g = -cos^2(t) (s_d F^- - dx/dt) - r cos(t) sin(t) (x + s_d dF^-/dt),        r: 0 -> 1 in the warm-up
    L = e^w ||F - F^- - g / (||g|| + c)||^2 - w                                 (2410.11081, eq. 6 to 8, Algorithm 1)

dx/dt = cos(t) z - sin(t) x0 with data alone, and with a teacher the same of the x0 that it sees. Any network is seen
as F = (cos(t) x - D) / (s_d sin(t)): of an EDM network it is minus its output. cos(t) sin(t) d/dt is d/d ln sigma,
which is taken by forward-mode differentiation, or by a central difference in ln sigma, which any network and any
kernel of attention allow. The difference is the better one for networks with sines of their time: EDM's 250 ln sigma
turns its fastest sine once in 0.025 of ln sigma, and the exact derivative is mostly that of the sines
(docs/lab/consistency.md); a difference over more than that averages them out.

Departures: e^w is 1 over the running mean of the loss in bins of u, which is where the paper's trained w(t) ends; the
networks keep their time embeddings and normalisations.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from diffdistill.consistency.objective import Denoise, Noise, check_levels, noised, spread_of
from diffdistill.consistency.settings import Continuous
from diffdistill.denoiser import Denoiser
from diffdistill.files import reason_of
from diffdistill.matching.level_mean import LevelMean
from diffdistill.process import Level, LevelLaw, per_sample

logger = logging.getLogger(__name__)


def tangent(F: Tensor, dF: Tensor, x: Tensor, dx: Tensor, t: Tensor, r: float, sigma_data: float) -> Tensor:
    """g of 2410.11081, eq. 6, before it is normalised.

    F: `(B, C, H, W)`; dF: its derivative by ln sigma along the trajectory, cos(t) sin(t) dF/dt; x: cos(t) x_t; dx:
    dx/dt; t: `(B,)`; r: part of the warm-up done. Returns `(B, C, H, W)`, 0 on average where f is consistent.
    """
    cos, sin = (per_sample(value, F) for value in (t.cos(), t.sin()))
    return -(cos**2) * (sigma_data * F - dx) - r * (cos * sin * x + sigma_data * dF)


def normalised(g: Tensor, constant: float) -> Tensor:
    """g / (||g|| + c) with the norm over C, H, W; a step of the target then has one length at every level."""
    return g / (per_sample(g.flatten(1).norm(dim=1), g) + constant)


def along_by_difference(
    f: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, sigma: Tensor, direction: Tensor, h: float
) -> Tensor:
    """d f / d ln sigma where x_t moves by `direction` per unit of ln sigma: (f(+h) - f(-h)) / 2h; f is asked twice.

    >>> f = lambda x, sigma: x**2 * per_sample(sigma, x)
    >>> x, sigma = torch.full((1, 1, 1, 1), 3.0), torch.tensor([2.0])
    >>> along_by_difference(f, x, sigma, x, 1e-2)  # f = x^2 sigma with dx = x d ln sigma: 3 f = 54, and h^2 / 6 of it
    tensor([[[[54.0039]]]])
    """
    ahead, behind = (f(x_t + step * direction, math.exp(step) * sigma) for step in (h, -h))
    return (ahead - behind) / (2 * h)


class _ContiguousNorms(TorchFunctionMode):
    """Within, group norms have their inputs in one piece: their tangents are taken by views (torch 2.13)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def along_by_forward_mode(
    f: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, sigma: Tensor, direction: Tensor
) -> Tensor:
    """The same, exactly, in one pass with tangents; RuntimeError where a layer of the network has none.

    Attention is the mathematical kernel's within, for the fused ones have no tangents.

    >>> f = lambda x, sigma: x**2 * per_sample(sigma, x)
    >>> x, sigma = torch.full((1, 1, 1, 1), 3.0), torch.tensor([2.0])
    >>> along_by_forward_mode(f, x, sigma, x)
    tensor([[[[54.]]]])
    """
    with sdpa_kernel(SDPBackend.MATH), _ContiguousNorms():
        return torch.func.jvp(f, (x_t, sigma), (direction, sigma))[1]


class ContinuousConsistency:
    """The loss of sCM on levels up to sigma_max, over a phase of `total` steps.

    flow: the teacher's x0; None: on data alone. exact: the precision of the passes that the derivative is taken from.
    """

    def __init__(
        self,
        settings: Continuous,
        sigma_min: float,
        sigma_max: float,
        total: int,
        flow: Denoise | None = None,
        exact: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.settings, self.total, self.flow, self.exact = settings, total, flow, exact
        self.bounds = sigma_min, sigma_max
        check_levels(settings.mean, settings.std, sigma_min, sigma_max)
        self.law = LevelLaw(Level("lognormal", mean=settings.mean, std=settings.std))
        self.mean_loss = LevelMean(bins=16, decay=0.98)
        self.derivative = settings.derivative

    def draw(self, blank: Tensor, step: int) -> Noise:
        u, sigma = self.law.draw(len(blank), blank.device)
        sigma = sigma.clamp(*self.bounds)
        return Noise(u, sigma, sigma, torch.randn_like(blank))

    def warmed(self, step: int) -> float:
        """r at a step: up to 1 over the warm-up. Never 0: there a student that is its teacher has no gradient, and
        Adam would make a whole step of its rounding.
        """
        steps = self.settings.tangent_warmup * self.total
        return min(1.0, (step + 1) / steps) if steps else 1.0

    def losses(self, model: Denoiser, x0: Tensor, cond: Tensor | None, noise: Noise, step: int) -> Tensor:
        sigma, spread = noise.high, spread_of(model)
        x_t = noised(x0, sigma, noise.eps)
        t = (sigma / spread).atan()
        cos, sin = (per_sample(value, x_t) for value in (t.cos(), t.sin()))

        def F(x_t: Tensor, sigma: Tensor) -> Tensor:
            return output_of(model, x_t, sigma, cond, spread)

        with torch.no_grad():
            clean = x0 if self.flow is None else self.flow(x_t, sigma, cond)
            dF = self._along(F, x_t, sigma, x_t - clean)
        out = F(x_t, sigma)
        x = cos * x_t
        dx = cos * (x - cos * clean) / sin - sin * clean
        g = normalised(tangent(out.detach(), dF, x, dx, t, self.warmed(step), spread), self.settings.tangent_constant)
        return (out - (out.detach() + g)).square().flatten(1).sum(1)

    def weights(self, noise: Noise) -> Tensor:
        return 1 / self.mean_loss(noise.u).clamp_min(1e-8)

    def count(self, losses: Tensor, noise: Noise) -> None:
        self.mean_loss.update(losses, noise.u)

    def _along(self, F: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, sigma: Tensor, way: Tensor) -> Tensor:
        if self.derivative == "forward":
            try:
                with self.exact():  # autocast casts weights to what tangents cannot be mixed with
                    return along_by_forward_mode(F, x_t, sigma, way)
            except torch.OutOfMemoryError:  # a RuntimeError that says nothing about the network
                raise
            except RuntimeError as error:  # NotImplementedError is one
                logger.warning(
                    "The network has no forward-mode derivative (%s); sCM takes central differences.", reason_of(error)
                )
                self.derivative = "central"
        with self.exact():
            return along_by_difference(F, x_t, sigma, way, self.settings.difference)

    def modules(self) -> dict[str, nn.Module]:
        return {"mean_loss": self.mean_loss}


def output_of(model: Denoiser, x_t: Tensor, sigma: Tensor, cond: Tensor | None, spread: float) -> Tensor:
    """F = (cos(t) x - D) / (s_d sin(t)) of any denoiser, with cos(t) x = cos(t)^2 x_t; `(B, C, H, W)`."""
    t = (sigma / spread).atan()
    cos, sin = (per_sample(value, x_t) for value in (t.cos(), t.sin()))
    return (cos**2 * x_t - model(x_t, sigma, cond)) / (spread * sin)
