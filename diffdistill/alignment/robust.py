"""Dr. DPO: a mean over pairs that wrong labels cannot rule (2407.07880)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill import processes


class RobustMean(NamedTuple):
    """A robust mean of losses and what each of them weighs in it. loss: scalar; weights: `(B,)`; neither has a graph.

    >>> from diffdistill.alignment import robust_mean
    >>> mean: RobustMean = robust_mean(torch.tensor([1.0, 1.0]), 0.5)
    >>> mean.loss, mean.weights
    (tensor(1.), tensor([0.5000, 0.5000]))
    """

    loss: Tensor
    weights: Tensor


@torch.no_grad()
def robust_mean(losses: Tensor, robust_beta: float, count: int | None = None) -> RobustMean:
    """L = -b ln mean_i exp(-L_i / b) over the pairs of a batch (2407.07880, Dr. DPO), and its weights dL / dL_i:

        w_i = exp(-L_i / b) / sum_j exp(-L_j / b),        so that sum_i w_i grad L_i is the gradient of L.

    b is between the least loss (to 0) and the plain mean (to infinity): a pair whose loss stays high, as a wrong
    label's does, counts little. The sums are over the whole batch, the micro-batches and processes included: a mean of
    the parts' values would be another loss.

    losses: `(B,)`, of this process's rows, as `processes.rows(count)` says; count: pairs of all processes, None: B.
    Returns L of all, and the weights `(B,)` of these rows, which sum to 1 over all.

    >>> mean = robust_mean(torch.tensor([0.2, 0.7, 3.0]), 1.0)
    >>> mean.loss, mean.weights
    (tensor(0.7874), tensor([0.5998, 0.3638, 0.0365]))
    """
    of_all = processes.gather(losses, count)
    log_sum = torch.logsumexp(-of_all / robust_beta, 0)
    loss = -robust_beta * (log_sum - math.log(len(of_all)))
    return RobustMean(loss, (-losses / robust_beta - log_sum).exp())
