"""Consistency distillation and improved consistency training: neighbouring levels of one trajectory are compared.

    L = d(f(x_{i+1}, s_{i+1}), sg f(x_i, s_i)) / (s_{i+1} - s_i),    d(a, b) = sqrt(||a - b||^2 + c^2) - c

x_{i+1} = x0 + s_{i+1} eps. With a teacher x_i is one step of its solver from there (2303.01469, Algorithm 2), without
one x_i = x0 + s_i eps with the same eps (Algorithm 3). The rest is of 2310.14189: the target is the model itself and
no average; ||.|| is over the whole image, c = 0.00054 sqrt(C H W) (eq. 8 and section 3.3; per element it would be
another loss); there are more levels as training goes on (section 3.4), drawn by a discretised lognormal law (3.5).

At the lowest level f(x, s_0) = x by definition, so the network is not asked there. Departures: no dropout. Levels that
are even in the network's time, all alike, are those of latent consistency models (2310.04378).
"""

import math

import torch
from torch import Tensor, nn

from diffdistill.consistency.objective import Denoise, Noise, check_levels, noised
from diffdistill.consistency.settings import Discrete
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.machine import send
from diffdistill.process import VP, Flow, Process, karras_levels, per_sample


def intervals_at(step: int, total: int, first: int, last: int) -> int:
    """Number of intervals at a step of `total` (2310.14189, section 3.4): min(first 2^floor(step / K'), last).

    K' = floor(total / (floor(log2(last / first)) + 1)). ConfigError for fewer steps than doublings.

    >>> [intervals_at(k, 400_000, 10, 1280) for k in (0, 49_999, 50_000, 399_999)]
    [10, 10, 20, 1280]
    """
    stages = math.floor(math.log2(last / first)) + 1
    if total < stages:
        raise ConfigError(
            f"intervals from {first} to {last} take {stages} stages and there are {total} steps; give more steps, or "
            f"intervals that double less often"
        )
    return min(first * 2 ** (step // (total // stages)), last)


def chances(levels: Tensor, mean: float, std: float) -> Tensor:
    """Of each interval of ascending levels `(N + 1,)`: the lognormal law's mass in it, normalised, `(N,)`.

    p_i ~ erf((ln s_{i+1} - mean) / (sqrt(2) std)) - erf((ln s_i - mean) / (sqrt(2) std))  (2310.14189, section 3.5).

    >>> from diffdistill.process import karras_levels
    >>> chances(karras_levels(11, 0.002, 80.0).flip(0), -1.1, 2.0).round(decimals=4)[:3].tolist()
    [0.0626, 0.1817, 0.2455]
    """
    below = torch.erf((levels.log() - mean) / (math.sqrt(2) * std))
    mass = below.diff()
    return mass / mass.sum()


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt(||a - b||^2 + c^2) - c with the norm over C, H, W; a, b: `(B, C, H, W)`. Returns `(B,)`.

    >>> pseudo_huber(torch.full((1, 1, 2, 2), 2.0), torch.zeros(1, 1, 2, 2), 3.0)  # sqrt(16 + 9) - 3
    tensor([2.])
    """
    return ((a - b).square().flatten(1).sum(1) + c**2).sqrt() - c


def solver_step(flow: Denoise, x: Tensor, high: Tensor, low: Tensor, cond: Tensor | None, heun: bool) -> Tensor:
    """One step of the teacher's probability flow from `high` to `low` > 0, `(B,)` (2206.00364, Algorithm 1)."""
    step = per_sample(low - high, x)
    slope = (x - flow(x, high, cond)) / per_sample(high, x)
    reached = x + step * slope
    if not heun:
        return reached
    corrected = (reached - flow(reached, low, cond)) / per_sample(low, x)
    return x + step * (slope + corrected) / 2


def even_in_time(process: Process, count: int, low: float, high: float) -> Tensor:
    """`count` + 1 levels from `low` to `high`, even in the network's time, float64: training steps of a VP network,
    t = sigma / (1 + sigma) of a flow, ln sigma of an EDM network.

    >>> even_in_time(Flow(), 2, 0.25, 4.0)  # t = 0.2, 0.5, 0.8
    tensor([0.2500, 1.0000, 4.0000], dtype=torch.float64)
    """
    ends = torch.tensor([low, high], dtype=torch.float64)

    def between(times: Tensor) -> Tensor:
        first, last = times.tolist()
        return torch.linspace(first, last, count + 1, dtype=torch.float64)

    if isinstance(process, VP):
        return process.level_at(between(process.time(ends))).double()
    if isinstance(process, Flow):
        t = between(ends / (1 + ends))
        return t / (1 - t)
    return between(ends.log()).exp()


class DiscreteConsistency:
    """The loss between neighbouring levels of [sigma_min, sigma_max], over a phase of `total` steps.

    process: the network's, whose time a grid may be even in. flow: the teacher's x0; None: consistency training, on
    data alone.

    >>> from diffdistill import load_model
    >>> model = load_model("builtin:fashion_mnist_teacher")
    >>> objective = DiscreteConsistency(Discrete((10, 20)), model.process, 0.002, 80.0, total=100)
    >>> x0, cond = torch.randn(4, 1, 28, 28), torch.arange(4)
    >>> noise = objective.draw(x0, step=0)
    >>> objective.losses(model, x0, cond, noise, step=0).shape
    torch.Size([4])
    """

    def __init__(
        self,
        settings: Discrete,
        process: Process,
        sigma_min: float,
        sigma_max: float,
        total: int,
        flow: Denoise | None = None,
    ):
        self.settings, self.process, self.total, self.flow = settings, process, total, flow
        self.bounds = sigma_min, sigma_max
        if total:  # a phase of none, beside the matching of a run that is all start, is never asked
            intervals_at(0, total, *settings.intervals)
        if settings.grid == "karras":
            check_levels(settings.mean, settings.std, sigma_min, sigma_max)

    def levels(self, step: int) -> Tensor:
        """The levels at a step, ascending, float64 `(N + 1,)`."""
        count = intervals_at(step, self.total, *self.settings.intervals)
        if self.settings.grid == "time":
            return even_in_time(self.process, count, *self.bounds)
        return karras_levels(count + 1, *self.bounds, self.settings.rho).flip(0)

    def draw(self, blank: Tensor, step: int) -> Noise:
        """Intervals by their chances, stratified: one draw in each of B equal cells of u."""
        count, levels = len(blank), self.levels(step)
        alike = levels.new_full((len(levels) - 1,), 1 / (len(levels) - 1))
        of_law = alike if self.settings.grid == "time" else chances(levels, self.settings.mean, self.settings.std)
        u = (torch.randperm(count) + torch.rand(count)) / count
        index = torch.searchsorted(of_law.cumsum(0), u.double()).clamp(max=len(levels) - 2)
        high, low = (send(levels[at].float(), blank.device) for at in (index + 1, index))
        return Noise(send(u, blank.device), high, low, torch.randn_like(blank))

    def losses(self, model: Denoiser, x0: Tensor, cond: Tensor | None, noise: Noise, step: int) -> Tensor:
        x_high = noised(x0, noise.high, noise.eps)
        with torch.no_grad():
            target = self._target(model, x0, x_high, cond, noise)
        out = model(x_high, noise.high, cond)
        return pseudo_huber(out, target, self.settings.huber * math.sqrt(x0[0].numel()))

    def weights(self, noise: Noise) -> Tensor:
        return torch.ones_like(noise.high) if self.settings.grid == "time" else 1 / (noise.high - noise.low)

    def count(self, losses: Tensor, noise: Noise) -> None:
        pass

    def _target(self, model: Denoiser, x0: Tensor, x_high: Tensor, cond: Tensor | None, noise: Noise) -> Tensor:
        if self.flow is None:
            x_low = noised(x0, noise.low, noise.eps)
        else:
            x_low = solver_step(self.flow, x_high, noise.high, noise.low, cond, self.settings.solver == "heun")
        at_end = noise.low <= self.bounds[0] * (1 + 1e-5)
        return torch.where(per_sample(at_end, x0), x_low, model(x_low, noise.low, cond))

    def modules(self) -> dict[str, nn.Module]:
        return {}
