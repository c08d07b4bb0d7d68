"""DDIM (2010.02502), F-PNDM (2202.09778) and the Time-Shift sampler (2305.15583), written from the papers alone.

The referee of `time_shift.py`: nothing of the package's samplers or of diffusers is used here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS, TIME, CUTOFF = 10, 1000, 300
Epsilon = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), t (B,)) -> predicted noise


@dataclass(frozen=True)
class Rule:
    """What is done to the labels; times in training steps.

    move: none; relabel (Algorithm 2 of the paper: network and solver take the chosen time, the destination stays);
    network (the network alone takes it); destination (the public code: a step ends at the time that the state before
    it chose around its end, and goes on from the scheduled one); offset (every label by the same number).
    target: variance of a state at t. paper: 1 - abar_t; corrected: abar_t V0 + 1 - abar_t, V0 that of the data;
    batch: corrected, with the mean over the batch; own: corrected, with the variance of the image that the plain
    sampler draws from this noise in place of V0.
    first: number of the first state that may move. weights: of the multistep formula, fixed (2202.09778, eq. 12) or of
    the times as they are.
    """

    move: str = "none"
    target: str = "corrected"
    window: int = 50
    offset: int = 0
    first: int = 1
    weights: str = "fixed"


class Table:
    """abar_t of the schedule, and abar = 1 at t = -1."""

    def __init__(self, betas: list[float]):
        self.abar = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
        self._ended = torch.cat([self.abar, self.abar.new_ones(1)])

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and s at t `(B,)`, as `(B, 1, 1, 1)`."""
        abar = self._ended[t].reshape(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def transfer(self, x: Tensor, t: Tensor, end: Tensor, e: Tensor) -> Tensor:
        """From t to `end` along the noise e (2202.09778, eq. 11): alpha' x0 + s' e with x0 = (x - s e) / alpha."""
        (alpha, s), (alpha_end, s_end) = self(t), self(end)
        return (alpha_end / alpha * x + (s_end - alpha_end * s / alpha) * e).float()


def runge_kutta(eps: Epsilon, table: Table, x: Tensor, t: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The noise of a step of fourth order (eq. 9), and that at its beginning."""
    middle = (t + end) // 2
    e1 = eps(x, t)
    e2 = eps(table.transfer(x, t, middle, e1), middle)
    e3 = eps(table.transfer(x, t, middle, e2), middle)
    e4 = eps(table.transfer(x, t, end, e3), end)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6, e1


def multistep(history: list[tuple[Tensor, Tensor]], end: Tensor, weights: str) -> Tensor:
    """The last four noises together (eq. 12); `true`: the weights that integrate a cubic over uneven times."""
    times, noises = zip(*history[-4:], strict=True)
    if weights == "fixed":
        factors = torch.tensor([-9.0, 37.0, -59.0, 55.0], dtype=torch.float64).expand(len(end), 4) / 24
    else:
        place = (torch.stack(times, 1) - times[-1][:, None]) / (end - times[-1])[:, None].double()
        powers = torch.arange(4)
        factors = torch.linalg.solve(place[:, None, :] ** powers[:, None], (1 / (powers + 1.0)).double()[:, None])[
            ..., 0
        ]
    return (factors.T.reshape(4, -1, 1, 1, 1) * torch.stack(noises)).sum(0)


def choose(
    x: Tensor, table: Table, rule: Rule, nominal: int, lowest: int, highest: Tensor, contrast: Tensor
) -> Tensor:
    """The time within the window whose expected variance is nearest to that of each image of x (Algorithm 2)."""
    measured = x.flatten(1).var(dim=1).double()
    if rule.target == "batch":
        measured = measured.mean().expand(len(x))
    times = torch.arange(nominal - rule.window // 2, nominal + rule.window // 2 + 1)
    abar = table.abar[times.clamp(0, TIME - 1)]
    signal = torch.zeros_like(contrast) if rule.target == "paper" else contrast
    miss = (abar * signal[:, None] + 1 - abar - measured[:, None]).abs()
    inside = (times >= lowest) & (times <= highest[:, None]) & (times < TIME) | (times == nominal)
    return times[miss.where(inside, torch.inf).argmin(1)]


def solve(
    eps: Epsilon,
    noise: Tensor,
    table: Table,
    solver: str,
    rule: Rule,
    contrast: Tensor,
    watch: dict[int, Tensor] | None = None,
) -> Tensor:
    """x0 from noise `(B, C, H, W)`; contrast `(B,)`: V0. `watch` is filled with the states by scheduled time."""
    grid = [round(TIME - i * TIME / STEPS) - 1 for i in range(STEPS)] + [-1]
    rows = torch.ones(len(noise), dtype=torch.long)
    label = told = grid[0] * rows
    x = (table(label)[1] * noise).float()
    history: list[tuple[Tensor, Tensor]] = []
    for i in range(STEPS):
        end = grid[i + 1] * rows
        moves = i + 1 >= rule.first and grid[i + 1] >= CUTOFF
        if rule.move == "destination" and moves:
            end = choose(x, table, rule, grid[i + 1], grid[i + 2] + 1, label - 1, contrast)
        if solver == "vp_ddim":
            e = eps(x, told)
        elif i < 3:
            e, first = runge_kutta(eps, table, x, told, end)
            history.append((told, first))
        else:
            history.append((told, eps(x, told)))
            e = multistep(history, end, rule.weights)
        x = table.transfer(x, label, end, e)
        before, label = label, grid[i + 1] * rows
        told = label
        if watch is not None:
            watch[grid[i + 1]] = x
        if moves and rule.move in ("relabel", "network", "offset"):
            told = label + rule.offset
            if rule.move != "offset":
                told = choose(x, table, rule, grid[i + 1], grid[i + 2] + 1, before - 1, contrast)
            label = label if rule.move == "network" else told
    return x
