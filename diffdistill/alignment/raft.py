"""RAFT: which of K samples a model is trained on next, by a reward that needs no gradient (2304.06767, 2407.09499)."""

import math
from typing import Literal

from torch import Tensor

from diffdistill.machine import finest

Choice = Literal["best", "softmax"]


def best_of(scores: Tensor) -> Tensor:
    """The index of the highest of each row's K scores, the first of equals: RAFT (2304.06767).

    scores: `(N, K)`, of K samples of one condition. Returns `(N,)`. For r = x and samples of N(0, 1) the mean of what
    is kept is 0.564, 1.029, 1.424, 1.766, 2.070 for K = 2, 4, 8, 16, 32; how far from the model: `kl_of_best`.

    >>> import torch
    >>> best_of(torch.tensor([[0.1, 0.7, 0.3], [2.0, 2.0, 1.0]]))
    tensor([1, 0])
    """
    return scores.argmax(1)


def softmax_choice(scores: Tensor, u: Tensor, scale: float = 1.0) -> Tensor:
    """An index of each row drawn by p_k = exp(a r_k) / sum_j exp(a r_j): curated retraining by choices of K
    (2407.09499, the Bradley-Terry model of K samples).

    The samples kept have p' = p E[K e^{a r} / sum_j e^{a r_j}], the K - 1 others drawn from p, and for many of them
    p e^{a r} / E e^{a r}: unlike the best of K, a limit that keeps its variety.

    scores: `(N, K)`; u: `(N,)` in [0, 1), uniform, by which each row chooses; scale: a. Returns `(N,)`.

    >>> import torch
    >>> scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # p = 0.27, 0.73
    >>> softmax_choice(scores, torch.tensor([0.2, 0.3]))
    tensor([0, 1])
    """
    exact = finest(scores.device)
    gaps = scores.to(exact) - scores.to(exact).amax(1, keepdim=True)  # first: scale times a score may have no number
    below = (scale * gaps).softmax(1).cumsum(1)
    return (below[:, :-1] <= u.to(exact)[:, None]).sum(1)


def kl_of_best(candidates: int) -> float:
    """KL(best of K || model) = ln K - (K - 1) / K where no two samples score alike: 0.193 for 2, 1.204 for 8.

    >>> round(kl_of_best(8), 3)
    1.204
    """
    return math.log(candidates) - (candidates - 1) / candidates


def chosen(scores: Tensor, choice: Choice, u: Tensor, scale: float = 1.0) -> Tensor:
    """The index of each row's sample that is kept, `(N,)`: `best_of`, or `softmax_choice` with u and scale.

    >>> import torch
    >>> chosen(torch.tensor([[0.0, 1.0]]), "best", torch.tensor([0.1]))
    tensor([1])
    """
    return best_of(scores) if choice == "best" else softmax_choice(scores, u, scale)
