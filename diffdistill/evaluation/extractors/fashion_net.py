"""The bundled classifier for 28x28 gray images whose penultimate layer measures Fréchet distances."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FashionNet(nn.Module):
    """Three convolution blocks and a linear layer: `features(x)` is `(N, dim)`, `forward(x)` the class logits.

    The features are taken *before* the last ReLU, so that their law is closer to a Gaussian (which the Fréchet
    distance assumes) and no coordinate is constant.
    """

    def __init__(self, channels: Sequence[int] = (24, 48, 96), dim: int = 128, num_classes: int = 10) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for c_in, c_out in zip((1, *channels), channels, strict=False):
            blocks += [
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.embed = nn.Linear(channels[-1] * 9, dim)
        self.head = nn.Linear(dim, num_classes)

    def fused(self) -> "FashionNet":
        """For measuring only: normalisation folded into the convolutions, memory laid out channels last."""
        layers: list[nn.Module] = []
        for conv, norm, pool, relu in zip(*[iter(self.eval().blocks)] * 4, strict=True):
            layers += [fuse_conv_bn_eval(conv, norm), pool, relu]
        self.blocks = nn.Sequential(*layers)
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> Tensor:
        """`(N, 1, 28, 28)` in [-1, 1] -> `(N, dim)`."""
        return self.embed(self.blocks(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x)))
