"""The four preconditionings of EDM's files, seen as one: each network becomes an F of EDM's kind.

With c_in x and 250 ln(sigma) coming in and D = c_skip x + c_out F wanted of what goes out (2206.00364, Table 1, column
"ours", sigma_data = 1/2), a network that was trained in another convention is translated on the way in and out. So one
process, one scheduler and one kind of student fit all of them, with the same D to rounding.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.machine import finest
from diffdistill.process import per_sample

Kind = Literal["edm", "vp", "ve", "iddpm"]
KINDS: tuple[Kind, ...] = ("edm", "vp", "ve", "iddpm")
SIGMA_DATA = 0.5  # of the outer view of vp, ve and iddpm networks; an edm network keeps its own, in the scheduler


@dataclass(frozen=True, eq=False)
class Preconditioning:
    """What a network N wants and gives, in coordinates x = x0 + sigma eps (2206.00364, Table 1).

    - edm: N sees x / sqrt(sigma^2 + sigma_data^2) and ln(sigma) / 4, and gives F
    - vp: x / sqrt(sigma^2 + 1) and (steps - 1) t(sigma), D = x - sigma N
    - ve: x and ln(sigma / 2), D = x + sigma N
    - iddpm: x / sqrt(sigma^2 + 1) and the index, from the noisiest, of the nearest of `steps` levels, D = x - sigma N

    beta_d, beta_min: linear schedule of vp, sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1; c_1, c_2: cosine
    schedule of iddpm (ibid., appendix C.3; 2102.09672).
    """

    kind: Kind = "edm"
    beta_d: float = 19.9
    beta_min: float = 0.1
    steps: int = 1000
    c_1: float = 0.001
    c_2: float = 0.008
    iddpm_levels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"preconditioning '{self.kind}' is unknown; use {', '.join(KINDS)}")
        object.__setattr__(self, "iddpm_levels", self._levels() if self.kind == "iddpm" else torch.zeros(1))

    def settings(self) -> dict[str, Any]:
        """The kind, and the constants of that kind only, for a config."""
        constants = {"vp": ("beta_d", "beta_min", "steps"), "iddpm": ("steps", "c_1", "c_2")}.get(self.kind, ())
        return {"kind": self.kind} | {name: getattr(self, name) for name in constants}

    def range(self, epsilon_t: float = 1e-5) -> tuple[float, float]:
        """Lowest and highest level the network was trained for; epsilon_t: the lowest t of vp."""
        if self.kind == "vp":
            low, high = (self.beta_d * t**2 / 2 + self.beta_min * t for t in (epsilon_t, 1.0))
            return math.sqrt(math.expm1(low)), math.sqrt(math.expm1(high))
        if self.kind == "iddpm":
            return float(self.iddpm_levels[-2]), float(self.iddpm_levels[0])
        return (0.02, 100.0) if self.kind == "ve" else (0.0, math.inf)

    def to_network(self, scaled: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """What N sees, of `scaled` = x / sqrt(sigma^2 + 1/4), `(B, C, H, W)`, and `time` = 250 ln(sigma), `(B,)`."""
        if self.kind == "edm":
            return scaled, time / 1000
        sigma = (time.to(finest(time.device)) / 250).exp()
        root = (sigma**2 + SIGMA_DATA**2).sqrt()
        factor = root if self.kind == "ve" else root / (sigma**2 + 1).sqrt()
        return scaled * per_sample(factor.to(scaled.dtype), scaled), self.noise_input(sigma).float()

    def to_f(self, output: Tensor, scaled: Tensor, time: Tensor) -> Tensor:
        """F = (D - c_skip x) / c_out of N's output.

        D = x + s sigma N gives F = (sigma / sigma_data) c_in x + s sqrt(sigma^2 + sigma_data^2) / sigma_data N.
        """
        if self.kind == "edm":
            return output
        sigma = (time.to(finest(time.device)) / 250).exp()
        sign = 1 if self.kind == "ve" else -1
        of_input, of_output = sigma / SIGMA_DATA, sign * (sigma**2 + SIGMA_DATA**2).sqrt() / SIGMA_DATA
        return per_sample(of_input.float(), scaled) * scaled + per_sample(of_output.float(), output) * output

    def noise_input(self, sigma: Tensor) -> Tensor:
        """c_noise of N for `sigma`, both `(B,)` float64."""
        if self.kind == "ve":
            return (0.5 * sigma).log()
        if self.kind == "iddpm":
            gaps = (sigma[:, None] - self.iddpm_levels.to(sigma.dtype).to(sigma.device)[None]).abs()
            return self.steps - 1.0 - gaps.argmin(dim=1)
        growth = self.beta_min**2 + 2 * self.beta_d * (sigma**2).log1p()
        return (self.steps - 1) * (growth.sqrt() - self.beta_min) / self.beta_d

    def _levels(self) -> Tensor:
        """The levels u_0 > ... > u_steps = 0 of improved DDPM as EDM states them, `(steps + 1,)` float64.

        u_(j-1)^2 + 1 = (u_j^2 + 1) / max(abar_(j-1) / abar_j, c_1), abar_j = sin^2(pi/2 j / (steps (c_2 + 1))).
        """

        def abar(j: int) -> float:
            return math.sin(0.5 * math.pi * j / self.steps / (self.c_2 + 1)) ** 2

        levels = [0.0]
        for j in range(self.steps, 0, -1):
            levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(abar(j - 1) / abar(j), self.c_1) - 1))
        return torch.tensor(levels[::-1], dtype=torch.float64)
