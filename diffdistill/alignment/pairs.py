"""Denoising losses of a pair: one noise and one time for both images, so that they differ by the images alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.machine import finest, send
from diffdistill.process import per_sample, prediction_of

if TYPE_CHECKING:
    from diffdistill.config.align import LossSpace

KINDS = ("epsilon", "sample", "v_prediction")  # of networks that are told a training step
ModelFunction = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class NoisedPairs:
    """2B noised images, wanted ones first: x_t = alpha x0 + sigma eps, of which pair i is rows i and B + i.

    x_t, eps, target: `(2B, C, H, W)`; t: `(2B,)`, in the units of the network; alpha, sigma: `(2B,)`. eps, t, alpha
    and sigma are equal in the two rows of a pair. kind: what the network predicts (`process.prediction_from_x0`).

    >>> from diffusers import DDPMScheduler
    >>> from diffdistill.alignment import noise_pairs
    >>> noised: NoisedPairs = noise_pairs(DDPMScheduler(), torch.zeros(3, 4, 8, 8), torch.ones(3, 4, 8, 8))
    >>> noised.x_t.shape, noised.kind
    (torch.Size([6, 4, 8, 8]), 'epsilon')
    >>> noised.losses(noised.eps)  # of a network that knows the noise
    (tensor([0., 0., 0.]), tensor([0., 0., 0.]))
    """

    x_t: Tensor
    t: Tensor
    eps: Tensor
    target: Tensor
    alpha: Tensor
    sigma: Tensor
    kind: str

    def losses(self, prediction: Tensor, loss_space: "LossSpace" = "native") -> tuple[Tensor, Tensor]:
        """`(l_w, l_l)`, each `(B,)` float32: means over C, H, W of the squared error, in the units of `loss_space`."""
        error = (prediction.float() - self.target).square().flatten(1).mean(1)
        scale = error_scale(self.kind, self.alpha, self.sigma, loss_space)
        l_w, l_l = (scale.square().float() * error).chunk(2)
        return l_w, l_l

    def part(self, rows: slice) -> "NoisedPairs":
        """Some of the pairs."""
        picked = {
            name: rows_of_pairs(getattr(self, name), rows) for name in ("x_t", "t", "eps", "target", "alpha", "sigma")
        }
        return NoisedPairs(kind=self.kind, **picked)


def rows_of_pairs(values: Tensor, rows: slice) -> Tensor:
    """The rows of some pairs in a tensor of 2B rows."""
    return torch.cat([half[rows] for half in values.chunk(2)])


def error_scale(kind: str, alpha: Tensor, sigma: Tensor, loss_space: "LossSpace") -> Tensor:
    """The factor f in `error of loss_space = f * error of the prediction`, at one x_t = alpha x0 + sigma eps.

    For a flow (alpha = 1 - s, sigma = s): |eps^ - eps| = (1 - s) |v^ - v|, |x0^ - x0| = s |v^ - v|.
    """
    if loss_space == "native":
        return torch.ones_like(alpha)
    if loss_space not in ("epsilon", "x0"):
        raise ConfigError(f"loss_space '{loss_space}' is unknown; use native, epsilon or x0")
    total = alpha**2 + sigma**2 if kind == "v_prediction" else alpha + sigma
    if kind in ("v_prediction", "flow"):
        return (alpha if loss_space == "epsilon" else sigma) / total
    if kind == ("epsilon" if loss_space == "epsilon" else "sample"):
        return torch.ones_like(alpha)
    return sigma / alpha if loss_space == "x0" else alpha / sigma


def noise_pairs(
    scheduler: Any,
    latents_w: Tensor,
    latents_l: Tensor,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    u: Tensor | None = None,
    shift: float | None = None,
) -> NoisedPairs:
    """Noise both images of each pair with one eps to one time, by the process of a diffusers scheduler.

    latents_w, latents_l: `(B, C, H, W)`, in the network's units (scaled latents).
    generator: of the noise and the times, on the CPU or the device of the latents; None: torch's own.
    noise: `(B, C, H, W)`, the eps of each pair; None: drawn.
    u: `(B,)` in (0, 1), the place of each time in its law; None: drawn. DDPM-like schedulers: t is uniform on the
        training steps. Flow matching: s = sigmoid(z), z ~ N(0, 1) (2403.03206, section 3.1), shifted as in sampling.
    shift: of the flow time; None: the scheduler's own. Models with dynamic shifting (Flux) need exp(mu) here.
    Raises ConfigError for latents of different shapes, and for a scheduler that has no training levels.

    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> wanted, other = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    >>> noised = noise_pairs(FlowMatchEulerDiscreteScheduler(), wanted, other, u=torch.tensor([0.5, 0.5]))
    >>> noised.t  # s = 1 / 2 for both images of both pairs
    tensor([500., 500., 500., 500.])
    >>> of_wanted, of_other = noised.x_t.chunk(2)
    >>> torch.allclose(of_other - of_wanted, 0.5 * (other - wanted))  # one noise a pair: (1 - s) (other - wanted)
    True
    """
    if latents_w.shape != latents_l.shape:
        raise ConfigError(
            f"the two images of a pair must have one shape to share their noise, not {tuple(latents_w.shape)} and "
            f"{tuple(latents_l.shape)}; resize them to one size"
        )
    device = latents_w.device
    source = device if generator is None else generator.device
    if u is None:
        u = torch.rand(len(latents_w), generator=generator, device=source)
    if noise is None:
        noise = torch.randn(latents_w.shape, generator=generator, device=source)
    noise = send(noise, device)
    t, alpha, sigma, kind = times(scheduler, send(u, device), shift)
    x0, eps = torch.cat([latents_w, latents_l]).float(), torch.cat([noise, noise])
    t, alpha, sigma = (torch.cat([value, value]) for value in (t, alpha, sigma))
    a, s = per_sample(alpha, x0).float(), per_sample(sigma, x0).float()
    x_t = a * x0 + s * eps
    # Of eps itself: (x_t - alpha x0) / sigma loses digits at small sigma.
    return NoisedPairs(x_t, t, eps, prediction_of(x0, eps, a, s, kind), alpha, sigma, kind)


def times(scheduler: Any, u: Tensor, shift: float | None) -> tuple[Tensor, Tensor, Tensor, str]:
    """`(t, alpha, sigma, kind)` at u; t in the units of the network, alpha and sigma float64."""
    steps = scheduler.config.num_train_timesteps
    if getattr(scheduler.config, "prediction_type", None) in KINDS and hasattr(scheduler, "alphas_cumprod"):
        t = (u * steps).long().clamp(max=steps - 1)
        abar = send(scheduler.alphas_cumprod.to(finest(u.device)), u.device)[t]
        return t, abar.sqrt(), (1 - abar).sqrt(), scheduler.config.prediction_type
    if type(scheduler).__name__.startswith("FlowMatch"):
        factor = scheduler.config.shift if shift is None else shift
        s = torch.special.ndtri(u.to(finest(u.device)).clamp(1e-6, 1 - 1e-6)).sigmoid()
        s = factor * s / (1 + (factor - 1) * s)
        return (s * steps).float(), 1 - s, s, "flow"
    raise ConfigError(
        f"scheduler {type(scheduler).__name__} has no training levels that are known; use a DDPM-like one "
        f"(alphas_cumprod) or a flow matching one"
    )


def paired_denoising_losses(
    model_fn: ModelFunction,
    scheduler: Any,
    latents_w: Tensor,
    latents_l: Tensor,
    cond: Any = None,
    *,
    generator: torch.Generator | None = None,
    loss_space: "LossSpace" = "native",
    shift: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`(l_w, l_l, t)`, each `(B,)`: the denoising losses of the pairs at one noise and one time a pair.

    model_fn: `(x_t, t, cond) -> prediction` for 2B rows, wanted images first; cond is handed to it as it is given.
    loss_space: native (the network's own), epsilon or x0; v- and flow losses are larger than epsilon losses, and
        MaPO's link saturates, so lower c there, or take epsilon.
    Others as in `noise_pairs`, whose result serves a second network, such as a reference model, at the same noise.
    Raises ConfigError as `noise_pairs` does, and for another loss_space.

    >>> from diffusers import DDPMScheduler
    >>> wanted, other = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    >>> def network(x_t, t, cond):  # it takes every noise to be 0, and is wrong by eps^2 in both images of a pair
    ...     return torch.zeros_like(x_t)
    >>> l_w, l_l, t = paired_denoising_losses(network, DDPMScheduler(), wanted, other)
    >>> torch.equal(l_w, l_l), t.shape
    (True, torch.Size([2]))
    """
    noised = noise_pairs(scheduler, latents_w, latents_l, generator=generator, shift=shift)
    l_w, l_l = noised.losses(model_fn(noised.x_t, noised.t, cond), loss_space)
    return l_w, l_l, noised.t.chunk(2)[0]
