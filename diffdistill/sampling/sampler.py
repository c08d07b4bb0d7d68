"""What a sampler is, and the registry of them: a file of `samplers/` each, or one of the user's own.

A sampler goes from noise to x0 through falling levels, given only a denoiser, in the coordinates x = x0 + sigma * eps
(2206.00364, section 2), where the probability-flow ODE of every process reads dx/dsigma = (x - D(x, sigma)) / sigma.
Nothing heavy is imported here, so that `--help` knows every name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffdistill.registry import Registry
from diffdistill.sampling.levels import karras

if TYPE_CHECKING:
    from torch import Tensor

Denoise = Callable[["Tensor", float], "Tensor"]
"""`(x (B, C, H, W), sigma) -> x0 (B, C, H, W)`: a denoiser, its condition bound, at one level a batch."""
Draw = Callable[[], "Tensor"]
"""`() -> (B, C, H, W)`: the next standard normal noise; only stochastic samplers ask."""


@dataclass(frozen=True)
class Sampler:
    """A row of the table of samplers.

    run: `(denoise, x, sigmas, draw) -> x (B, C, H, W)`, from x at the level sigmas[0] to x at the last, which is 0, or
    a positive level to stop early; not clamped. None: `scheduler` computes it.
    levels: of (steps, sigma_min, sigma_max), for `run`; steps: when the user names none; evaluations: calls of the
    denoiser for so many steps that end at 0.
    scheduler: the class of diffusers that computes it, always where there is no `run`, else where a correction of
    exposure bias, which acts on schedulers, is wanted; None: it follows no differential equation, so no correction
    fits. settings: of that class, as far as it has them; fewest: steps that it needs.
    for_students: whether it samples a student, which is trained at its own levels alone; `run` is then also given the
    settings that `Denoiser.few_step_settings` returns. Teachers take every sampler.
    stochastic: whether it draws noise on its way, Gaussian noise, which models of another (PFGM++) refuse.

    A whole sampler of one's own, `diffdistill sample MODEL --sampler mine.py:SAMPLER --allow-code ...`:

    >>> def euler(denoise, x, sigmas, draw):
    ...     for sigma, following in zip(sigmas, sigmas[1:]):
    ...         x = x + (following - sigma) * (x - denoise(x, sigma)) / sigma
    ...     return x
    >>> SAMPLER = Sampler("my_euler", "first order", steps=35, run=euler)
    >>> round(SAMPLER.run(lambda x, sigma: 0.5 * x, 80.0, [80.0, 40.0, 20.0], None), 6)
    45.0
    """

    name: str
    summary: str
    steps: int
    run: "Callable[..., Tensor] | None" = None
    levels: Callable[[int, float, float], Sequence[float]] = karras
    evaluations: Callable[[int], int] = int
    scheduler: str | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: {"timestep_spacing": "trailing"})
    fewest: int = 1
    for_students: bool = False
    stochastic: bool = False


SAMPLERS: Registry[Sampler] = Registry("sampler", Sampler, "diffdistill.sampling.samplers", "SAMPLER")
