"""Couplings: which noise a batch's images are paired with, so that the paths from noise to images cross less.

    ot    the pairing of least total cost ||z_i - x_j||^2 within the batch (2302.00482). It is for data without
          conditions: with them, images of a class take the noise that lies nearest to them, and the network learns
          that class from a part of the noise only, while sampling gives it all of it.
    c2ot  cost ||z_i - x_j||^2 + w C(c_i, c_j) (2503.10636): noise i comes with the condition c_i that it was drawn
          beside, and a change of condition costs, so each condition keeps noise of its own law.

What is learned from coupled pairs is the flow of these paths, dx/dsigma = E[eps | x]: right for samplers without noise
of their own, for consistency training and for flows. It is not the score of the noised data, so a model trained so is
no teacher of distribution matching. Pairs of a regression start have their coupling already: the teacher's solver maps
each noise to its image.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffdistill.errors import ConfigError

Coupling = Literal["independent", "ot", "c2ot"]
TARGET = 0.2  # of `condition_weight`; 2503.10636 has it for ImageNet-32
ALL_ALIKE = 1e8  # the weight at which a search has nothing left to find


def coupled(noise: Tensor, images: Tensor, cond: Tensor | None = None, kind: Coupling = "c2ot") -> Tensor:
    """The noise of each image: a permutation p `(B,)` of the rows of `noise`, so that image j is paired with z[p[j]].

    noise, images: `(B, ...)` alike, in one unit. cond: what row i of both came with: class labels `(B,)`, integers;
    or features `(B, D)`, of which the cosine distance counts, with the weight that `condition_weight` finds; None:
    c2ot is ot. The least cost is found by scipy's `linear_sum_assignment`, in about B^3 steps:
    256 rows of 784 take 9 ms of one core, 640 take 75, of ten classes 3 and 9.

    Raises ConfigError for another kind, for ot with conditions, and without scipy.

    >>> noise, images = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[4.0], [0.1], [0.9]])
    >>> coupled(noise, images)  # each image has the noise that is nearest to it
    tensor([2, 0, 1])
    >>> coupled(noise, images, torch.tensor([0, 1, 1]))  # the first class has one noise and one image
    tensor([0, 1, 2])
    """
    check_coupling(kind, conditional=cond is not None)
    if len(noise) != len(images) or (cond is not None and len(cond) != len(images)):
        given = "" if cond is None else f", and {len(cond)} conditions"
        raise ConfigError(
            f"{len(noise)} rows of noise cannot be coupled with {len(images)} images{given}; give as many"
        )
    order = torch.arange(len(images))
    if kind == "independent":
        return order.to(images.device)
    if cond is not None and not cond.is_floating_point():
        for label in cond.unique():
            rows = (cond == label).nonzero().flatten().cpu()
            order[rows] = rows[cheapest(distances(noise[rows.to(noise.device)], images[rows.to(images.device)]))]
        return order.to(images.device)
    cost = distances(noise, images)
    if cond is not None:
        apart = cosine_distances(cond)
        cost = cost + condition_weight(cost, apart) * apart
    return cheapest(cost).to(images.device)


def check_coupling(kind: str, conditional: bool, images: int | None = None, batch: int | None = None) -> None:
    """ConfigError for a coupling that is not known or not right for the data, and for fewer images than a batch.

    >>> check_coupling("ot", conditional=True)
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: coupling 'ot' gives each class a part of the noise only, and sampling gives it ...
    """
    if kind not in ("independent", "ot", "c2ot"):
        raise ConfigError(f"coupling '{kind}' is not known; it must be independent, ot or c2ot")
    if kind == "ot" and conditional:
        raise ConfigError(
            "coupling 'ot' gives each class a part of the noise only, and sampling gives it all; use c2ot, which "
            "keeps the noise of each condition whole, or data without labels"
        )
    if kind != "independent" and images is not None and batch is not None and images < batch:
        raise ConfigError(
            f"coupling '{kind}' takes the noise of {batch} images at a time, and the data has {images}; set a smaller "
            f"train_batch_size, or coupling=independent"
        )


def distances(noise: Tensor, images: Tensor) -> Tensor:
    """||z_i - x_j||^2, `(B, B)`, in float64 on the CPU: row i of noise, column j of images.

    >>> distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]]))
    tensor([[9., 1.],
            [4., 0.]], dtype=torch.float64)
    """
    z, x = (rows.detach().flatten(1).cpu().double() for rows in (noise, images))
    squares = z.square().sum(1)[:, None] + x.square().sum(1)[None, :] - 2 * z @ x.T
    return squares.clamp_min(0)


def cosine_distances(cond: Tensor) -> Tensor:
    """1 - cos(c_i, c_j), `(B, B)`, of features `(B, D)`, in float64 on the CPU; exactly 0 of a row to itself.

    >>> cosine_distances(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    directions = normalize(cond.detach().flatten(1).cpu().double(), dim=1)
    return (1 - directions @ directions.T).clamp_min(0).fill_diagonal_(0)


def condition_weight(cost: Tensor, apart: Tensor, target: float = TARGET) -> float:
    """The least w (to 1 %) at which a part `target` of all pairs costs no more than leaving their noise where it is:

        mean over i, j of [ cost_ij + w apart_ij <= cost_ii ]  <=  target,        falling in w    (2503.10636).

    The search begins at 100, doubles until it is past the target, and halves the interval. 0 where plain transport is
    within the target already.

    cost: `(B, B)`, of `distances`; apart: `(B, B)`, of conditions, 0 on the diagonal.

    >>> cost = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> apart = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    >>> 2.0 < condition_weight(cost, apart, target=0.5) < 2.03  # 1 + 0.5 w > 2
    True
    """
    own = cost.diagonal()[:, None]

    def part(weight: float) -> float:
        return float((cost + weight * apart <= own).double().mean())

    if part(0.0) <= target:
        return 0.0
    low, high = 0.0, 100.0
    while part(high) > target and high < ALL_ALIKE:
        low, high = high, 2 * high
    while high - low > 0.01 * low and high > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if part(middle) > target else (low, middle)
    return high


def cheapest(cost: Tensor) -> Tensor:
    """The permutation p of least sum_j cost[p[j], j], `(B,)`; ConfigError without scipy.

    >>> cheapest(torch.tensor([[9.0, 1.0], [4.0, 9.0]]))
    tensor([1, 0])
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ConfigError(f"a coupling needs scipy ({error}): pip install 'diffdistill[eval]'") from error
    _, chosen = linear_sum_assignment(cost.T.numpy())
    return torch.from_numpy(chosen).long()
