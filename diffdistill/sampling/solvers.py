"""Samplers: from noise to x0 through a falling list of levels, given only a denoiser.

All work in the coordinates x = x0 + sigma * eps of the package (2206.00364, section 2), where the probability-flow ODE
of every process reads dx/dsigma = (x - D(x, sigma)) / sigma. `sigmas` are n + 1 levels; the first is the level of the
initial noise, the last is 0, or a positive level to stop early. A sampler returns x at the last level, `(B, C, H, W)`,
not clamped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffdistill.process import karras_levels
from diffdistill.sampling.noise import Noise

Denoise = Callable[[Tensor, float], Tensor]
"""`(x (B, C, H, W), sigma) -> x0 (B, C, H, W)`: a denoiser, its condition bound, at one level a batch."""
Solve = Callable[[Denoise, Noise, Sequence[float]], Tensor]
"""`(denoise, noise, sigmas) -> x (B, C, H, W)`: a sampler."""


def euler(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """First order: x_next = x + (sigma_next - sigma) (x - D) / sigma (2206.00364, Algorithm 1, first stage)."""
    x = noise.draw() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def flow_euler(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """`euler` as x_next = r x + (1 - r) D, r = sigma_next / sigma, which stays exact where a flow's time is 1."""
    x = noise.draw() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        ratio = following / sigma
        x = ratio * x + (1 - ratio) * denoise(x, sigma)
    return x


def heun(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """Second order, two evaluations a step, one in a step that ends at 0 (2206.00364, Algorithm 1)."""
    x = noise.draw() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        guess = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (guess - denoise(guess, following)) / following) / 2
            guess = x + (following - sigma) * slope
        x = guess
    return x


def dpm_solver(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M): second order, one evaluation a step (2211.01095, Algorithm 2; alpha = 1, lambda = -ln sigma).

    x_next = (sigma_next / sigma) x - (e^-h - 1) D', D' = D + (D - D_prev) h / (2 h_prev), h = lambda_next - lambda.
    The first step, and one that ends at 0 (h infinite, D' = D), have first order.
    """
    x = noise.draw() * sigmas[0]
    previous, previous_step = None, 0.0
    for sigma, following in pairwise(sigmas):
        x0 = estimate = denoise(x, sigma)
        if following > 0:
            step = math.log(sigma / following)
            if previous is not None:
                estimate = x0 + (x0 - previous) * (step / (2 * previous_step))
            previous, previous_step = x0, step
        ratio = following / sigma
        x = ratio * x + (1 - ratio) * estimate
    return x


def ddpm(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """Ancestral sampling: x_next ~ q(x_next | x, x0 = D), the forward posterior (2006.11239, eq. 6 and 7).

    With r = (sigma_next / sigma)^2, its mean is D + r (x - D) and its variance sigma_next^2 (1 - r).
    """
    x = noise.draw() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        x0 = denoise(x, sigma)
        ratio = (following / sigma) ** 2
        x = x0 + ratio * (x - x0)
        if following > 0:
            x = x + following * math.sqrt(1 - ratio) * noise.draw()
    return x


def renoise(
    denoise: Denoise,
    noise: Noise,
    sigmas: Sequence[float],
    arrange: Callable[[Tensor], Tensor] = lambda drawn: drawn,
) -> Tensor:
    """x0, fresh noise up to the next level, x0 ... (2303.01469, Algorithm 1): a student's K steps on latents.

    arrange: of the later noise, which may be drawn in the order of another layout (`Adapter.arrange`).
    """
    x = noise.draw() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        x = denoise(x, sigma)
        if following > 0:
            x = x + following * arrange(noise.draw())
    return x


def consistency(
    denoise: Denoise,
    noise: Noise,
    sigmas: Sequence[float],
    *,
    boundary: float = 0.0,
    s_noise: float = 1.0,
    clip: bool = True,
) -> Tensor:
    """A student's K steps on pixels: `renoise` with every x0 clamped to [-1, 1] and `boundary` taken off the noise.

    x_next = x0 + s_noise sqrt(sigma_next^2 - boundary^2) z (2303.01469, Algorithm 1, where D's images count as states
    at the level `boundary`): the arithmetic of diffusers' `CMStochasticIterativeScheduler`. boundary: of the process;
    s_noise and clip: of a consistency model's own schedule.
    """
    x = noise.draw() * sigmas[0]
    for sigma, following in pairwise(sigmas):
        x = denoise(x, sigma)
        x = x.clamp(-1, 1) if clip else x
        if following > 0:
            x = x + s_noise * math.sqrt(max(0.0, following**2 - boundary**2)) * noise.draw()
    return x


def karras(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` levels of 2206.00364, eq. 5 (rho = 7), then 0."""
    return [*karras_levels(steps, sigma_min, sigma_max).tolist(), 0.0]


def angular(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` levels even in arctan(sigma), the time t of the cosine process x = cos(t) x0 + sin(t) eps, then 0.

    The last level is one step above 0, or sigma_min where that is higher.
    """
    top = math.atan(sigma_max)
    last = max(top / steps, math.atan(sigma_min))
    return [*torch.linspace(top, last, steps, dtype=torch.float64).tan().tolist(), 0.0]


def even_in_flow(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` levels even in the time t = sigma / (1 + sigma) of x = (1 - t) x0 + t eps, from sigma_max, then 0."""
    times = torch.linspace(sigma_max / (1 + sigma_max), 0, steps + 1, dtype=torch.float64)[:-1]
    return [sigma_max, *(times / (1 - times)).tolist()[1:], 0.0]


@dataclass(frozen=True)
class Solver:
    """A sampler of the table: what it computes, where, at what cost."""

    solve: Solve
    levels: Callable[[int, float, float], list[float]]  # of (steps, sigma_min, sigma_max): n + 1, the last is 0
    steps: int  # when the user names none
    summary: str

    def evaluations(self, steps: int) -> int:
        """Calls of the denoiser for `steps` steps that end at 0."""
        return 2 * steps - 1 if self.solve is heun else steps


# In sigma units DDIM with eta = 0 (2010.02502, eq. 12 and 14) is Euler's method, so `ddim` is `euler` on other levels:
# those that implementations of DDIM use, even in the time of a variance-preserving process instead of Karras'.
SOLVERS: dict[str, Solver] = {
    "heun": Solver(heun, karras, 18, "EDM, second order, 2n - 1 evaluations, Karras levels"),
    "euler": Solver(euler, karras, 35, "first order, n evaluations, Karras levels"),
    "ddim": Solver(euler, angular, 50, "DDIM with eta 0: Euler on levels even in the time of the cosine process"),
    "flow_euler": Solver(flow_euler, even_in_flow, 28, "Euler, even in a flow's time, or as its pipeline shifts it"),
    "dpm_solver": Solver(dpm_solver, karras, 20, "DPM-Solver++(2M), second order, n evaluations, Karras levels"),
    "ddpm": Solver(ddpm, karras, 250, "ancestral, stochastic, n evaluations, Karras levels"),
    "consistency": Solver(consistency, karras, 1, "x0, fresh noise, x0 ...: n evaluations; for students"),
}
