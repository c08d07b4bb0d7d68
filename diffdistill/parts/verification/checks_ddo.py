"""Test I: the loss of DDO (2503.01103) in closed forms: its optimum, its gradient at the reference, where one noise an
image leads it.

Three states, whose optimum has numbers; and a Gaussian of data, N(0, 0.5^2), and one of samples of the reference, N(0,
0.6^2), at the level 1, with denoisers eps = k x that are linear: exact is k = 1 / (s^2 + 1).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffdistill.alignment.ddo import ddo_loss
from diffdistill.parts.verification.analytic import hermite
from diffdistill.parts.verification.check import Check

P_DATA, P_REFERENCE = (0.5, 0.3, 0.2), (0.3, 0.3, 0.4)
PAIRS = {(1.0, 1.0): P_DATA, (1.0, 0.5): (0.64301, 0.26231, 0.09467)}
PUBLISHED = (0.67568, 0.24324, 0.08108)  # p_ref^(1 - 1/beta) p_data^(1/beta) for beta 1/2, normalised
DATA_STD, REFERENCE_STD = 0.5, 0.6
EXACT, REFERENCE = (1 / (std**2 + 1) for std in (DATA_STD, REFERENCE_STD))
STOPS = {(1.0, 1.0): 0.88270, (1.0, 0.1): 1.37032, (4.0, 0.1): 3.03162}  # by 96 to 240 nodes a side


def checks() -> Iterator[Check]:
    for (alpha, beta), expected in PAIRS.items():
        got = best_states(alpha, beta)
        yield Check("I", f"DDO, three states, alpha {alpha:g}, beta {beta:g}", got, expected, 2e-5)
    yield Check("I", "DDO, beta 0.5 is not the published power of ratios", got, PUBLISHED, 0.02, "differs")
    for alpha, beta in ((1.0, 1.0), (1.0, 0.1), (4.0, 0.1)):
        expected_slope = beta * (REFERENCE * (DATA_STD**2 + 1) - 1)  # beta / 2 of the data's denoising loss alone
        slope = slope_at(REFERENCE, alpha, beta)
        yield Check("I", f"DDO at the reference, alpha {alpha:g}, beta {beta:g}", (slope,), (expected_slope,), 1e-9)
    for (alpha, beta), expected_k in STOPS.items():
        k = crossing(lambda k, a=alpha, b=beta: slope_at(k, a, b))  # type: ignore[misc]
        yield Check("I", f"DDO, best k of one noise, {alpha:g}, {beta:g} (data {EXACT:g})", (k,), (expected_k,), 1e-4)


def drawn(probabilities: tuple[float, ...]) -> Tensor:
    """Ten states in these proportions, `(10,)`."""
    return torch.repeat_interleave(torch.arange(3), torch.tensor([round(10 * p) for p in probabilities]))


def best_states(alpha: float, beta: float) -> tuple[float, ...]:
    """The probabilities that minimise the loss, begun at the reference's."""
    z = torch.tensor(P_REFERENCE, dtype=torch.float64).log().requires_grad_()
    before, seen, own = -z.detach(), drawn(P_DATA), drawn(P_REFERENCE)
    search = torch.optim.LBFGS(
        [z], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        now = -z.log_softmax(0)
        value = ddo_loss(now[seen], before[seen], now[own], before[own], alpha=alpha, beta=beta).loss
        value.backward()
        return value

    search.step(loss)
    return tuple(z.detach().softmax(0).tolist())


def slope_at(k: float, alpha: float, beta: float, count: int = 64) -> float:
    """dL/dk of the denoiser eps = k x, one noise an image, errors ||k x - eps||^2."""
    (nodes, weights), at = hermite(count), torch.tensor(k, dtype=torch.float64, requires_grad=True)
    z, eps = torch.cartesian_prod(nodes, nodes).unbind(1)
    errors = [
        (factor * (std * z + eps) - eps).square() for std in (DATA_STD, REFERENCE_STD) for factor in (at, REFERENCE)
    ]
    one: Callable[..., Tensor] = lambda *values: ddo_loss(*(v[None] for v in values), alpha=alpha, beta=beta).loss  # noqa: E731
    losses = torch.vmap(one)(*errors)
    (slope,) = torch.autograd.grad((torch.outer(weights, weights).flatten() * losses).sum(), at)
    return float(slope)


def crossing(slope: Callable[[float], float], low: float = REFERENCE, high: float = 4.0) -> float:
    """Where a rising slope is 0, by halving."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low
