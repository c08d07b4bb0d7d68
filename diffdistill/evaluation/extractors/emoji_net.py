"""The bundled judge of 32x32 emoji: which style, which category; its penultimate layer measures Fréchet distances."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CATEGORIES = (
    "Activities", "Animals & Nature", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion", "Symbols",
    "Travel & Places",
)  # fmt: skip


class EmojiNet(nn.Module):
    """Two convolutions a block, each block half the side: `features(x)` `(N, dim)`, `head` of them, after a ReLU, the
    logits of `CATEGORIES`, `style` those of `diffdistill.data.emoji.STYLES`.

    As in `FashionNet`, the features are taken before the last ReLU. No reward and no teacher sees this network.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128), dim: int = 128) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for c_in, c_out in zip((3, *channels), channels, strict=False):
            blocks += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
            blocks += [nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.MaxPool2d(2)]
            blocks += [nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        self.embed = nn.Linear(channels[-1] * 16, dim)
        self.head = nn.Linear(dim, len(CATEGORIES))
        self.style = nn.Linear(dim, 2)

    def fused(self) -> "EmojiNet":
        """For measuring only: normalisation folded into the convolutions."""
        layers: list[nn.Module] = []
        for layer in self.eval().blocks:
            if isinstance(layer, nn.BatchNorm2d):
                convolution = layers.pop()
                assert isinstance(convolution, nn.Conv2d)
                layers.append(fuse_conv_bn_eval(convolution, layer))
            else:
                layers.append(layer)
        self.blocks = nn.Sequential(*layers)
        return self

    def features(self, x: Tensor) -> Tensor:
        """`(N, 3, 32, 32)` in [-1, 1] -> `(N, dim)`."""
        return self.embed(self.blocks(x).flatten(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the categories and of the styles."""
        found = torch.relu(self.features(x))
        return self.head(found), self.style(found)
