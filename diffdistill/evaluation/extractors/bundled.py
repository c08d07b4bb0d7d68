"""Extractors that need no download: the bundled classifiers and the pixels themselves."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.models.conv_net import ConvNet, build_conv_net, load_conv_net

CATEGORIES = (
    "Activities", "Animals & Nature", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion", "Symbols",
    "Travel & Places",
)  # fmt: skip


class ClassifierFeatures(FeatureExtractor):
    """Penultimate features of a `ConvNet`, in units of their mean variance over the data it was trained on.

    The folder is one of examples/fashion_mnist/train_features.py; raises CheckpointError for another.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        net, config = load_conv_net(folder, self.build)
        self.id, self.sha256, self.dim, self.device = config["id"], config["sha256"], config["dim"], device
        self.channels, self.size = config["image_channels"], (config["image_size"], config["image_size"])
        self.net = net.to(device)

    def build(self, config: dict[str, Any]) -> ConvNet:
        return build_conv_net(config)

    def unseen(self, channels: int, height: int, width: int) -> list[str]:
        texts = super().unseen(channels, height, width)
        if self.channels == 3 and channels == 1:
            texts.append(f"the features '{self.id}' were learned on colour pictures, and there are gray ones")
        return texts

    def embed(self, images: Tensor) -> Tensor:
        return self.net.features(images / 127.5 - 1)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        return self.net.head(features.float().to(self.device).relu()).cpu().double().softmax(1)


class EmojiNet(ConvNet):
    """The bundled judge of 32x32 emoji: which category, which style.

    A `ConvNet` whose `head` gives the logits of `CATEGORIES`; a second head, `style`, gives those of the styles, noto
    and twemoji. No reward and no teacher sees this network.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128), dim: int = 128) -> None:
        super().__init__(
            channels, dim, image_channels=3, image_size=32, num_classes=len(CATEGORIES), convs_per_block=2
        )
        self.style = nn.Linear(dim, 2)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the categories and of the styles."""
        features = torch.relu(self.features(x))
        return self.head(features), self.style(features)


class EmojiFeatures(ClassifierFeatures):
    """Penultimate features of the judge `EmojiNet`."""

    def build(self, config: dict[str, Any]) -> ConvNet:
        return EmojiNet(config["channels"], config["dim"])

    @torch.no_grad()
    def styles(self, features: Tensor) -> Tensor:
        """Probabilities `(N, 2)` of the styles, noto and twemoji, of features."""
        assert isinstance(self.net, EmojiNet)
        return self.net.style(features.float().to(self.device).relu()).cpu().double().softmax(1)


class PixelFeatures(FeatureExtractor):
    """The values of an image of `size` pixels in each channel, scaled to [0, 1]: a baseline without weights."""

    def __init__(self, size: tuple[int, int] = (16, 16), channels: int = 3) -> None:
        self.size, self.channels, self.dim = size, channels, channels * size[0] * size[1]
        self.id = f"pixels-{channels}x{size[0]}x{size[1]}"
        self.sha256 = hashlib.sha256(self.id.encode()).hexdigest()

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() / 255


ARCHITECTURES: dict[str, Callable[[Path, torch.device], FeatureExtractor]] = {
    "ConvNet": ClassifierFeatures,
    "EmojiNet": EmojiFeatures,
}
"""Of folders, by `architecture` in their config.json."""
