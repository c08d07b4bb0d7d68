"""The bundled judge of 32x32 emoji: which style, which category; its penultimate layer measures Fréchet distances."""

import torch
from torch import Tensor, nn

from diffdistill.models.conv_net import ConvNet

CATEGORIES = (
    "Activities", "Animals & Nature", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion", "Symbols",
    "Travel & Places",
)  # fmt: skip


class EmojiNet(ConvNet):
    """A `ConvNet` whose `head` gives the logits of `CATEGORIES`, with a second head, `style`, for those of
    the styles, noto and twemoji. No reward and no teacher sees this network.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128), dim: int = 128) -> None:
        super().__init__(
            channels, dim, image_channels=3, image_size=32, num_classes=len(CATEGORIES), convs_per_block=2
        )
        self.style = nn.Linear(dim, 2)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the categories and of the styles."""
        found = torch.relu(self.features(x))
        return self.head(found), self.style(found)
