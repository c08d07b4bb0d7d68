"""Weights that move within the backward pass: no two gradients are ever held at once."""

from typing import Any

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.matching.micro_batches import Metrics
from diffdistill.training.optim.updater import Updater


class BackwardUpdater(Updater):
    """Each weight moves as soon as its gradient is known, which is then freed: one copy of the weights is saved.

    A weight's gradient is complete when all layers that use it have been passed, so no layer sees a moved weight, and
    the result is that of `Updater` to the last bit where nothing is clipped. One backward pass makes a step; whoever
    makes it calls `begin` before. The norm of all gradients is known only at the end, so there is no clipping, and a
    gradient that is not finite stops the run when weights nearer to the loss have moved: go on from the checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.now, self.norms = 0, list[Tensor]()
        for weight in self.parameters:
            weight.register_post_accumulate_grad_hook(self._move)

    def begin(self, step: int) -> None:
        self.now, self.norms = step, []
        self.set_rate(step)

    def _move(self, weight: nn.Parameter) -> None:
        assert weight.grad is not None
        processes.sum_gradients([weight])  # in the order of the pass, which is the same in all processes
        norm = weight.grad.norm()
        if norm.device.type == "cpu":  # elsewhere it is noted once, at the end
            self.require_finite(norm, self.now)
        self.norms.append(norm)
        self.optimizer.step()  # of the one weight that has a gradient
        weight.grad = None

    def step(self, step: int) -> Metrics:
        """The figures of a step whose weights have moved."""
        norm = torch.stack(self.norms).norm()
        self.require_finite(norm, step)
        return self.figures(norm, step)
