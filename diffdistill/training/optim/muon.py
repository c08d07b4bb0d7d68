"""Muon: momentum whose every matrix is made orthogonal (K. Jordan et al., 2024, kellerjordan.github.io/posts/muon).

torch.optim.Muon takes matrices only and computes in bf16, which CPUs without bf16 instructions emulate; this one takes
convolution kernels `(O, I, h, w)` as matrices `(O, I h w)` and stays in float32.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.optimizers import Muon as MuonSettings

# Coefficients of the quintic a s + b s^3 + c s^5 (ibid.): five rounds bring singular values of 0.01 to 1 near 1.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, roughly: singular values between about 0.7 and 1.2.

    `(m, n)` -> `(m, n)`, by Newton-Schulz rounds; independent of the matrix's scale.
    """
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(ROUNDS):
        gram = wide @ wide.T
        # a s + b s^3 + c s^5, the products adding up in place: a quarter less time where matrices are small.
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=B, alpha=C), wide, beta=A)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """w <- w - lr sqrt(max(1, m / n)) orthogonal(g'), for matrices `(m, n)`; g' is Nesterov's average of gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["average"] = torch.zeros_like(p)
                average = state["average"]
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(average, group["momentum"]).flatten(1))
                rows, columns = update.shape
                p.add_(update.view_as(p), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def build(parameters: list[nn.Parameter], settings: MuonSettings) -> Muon:
    return Muon(parameters, settings.learning_rate, settings.momentum)


def split_weights(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters: weights of inner linear layers and convolutions, and the rest.

    The rest are layers that touch the image's own channels, embeddings, norms and biases, for which an orthogonal
    update means nothing.
    """
    config: Any = network.config
    image = {config.in_channels, getattr(config, "out_channels", config.in_channels)}
    inner = {
        id(layer.weight)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and "embed" not in name and not image & channels_of(layer)
    }
    trained = [p for p in network.parameters() if p.requires_grad]
    return [p for p in trained if id(p) in inner], [p for p in trained if id(p) not in inner]


def channels_of(layer: nn.Linear | nn.Conv2d) -> set[int]:
    if isinstance(layer, nn.Conv2d):
        return {layer.in_channels, layer.out_channels}
    return {layer.in_features, layer.out_features}
