"""Extractors that need no download: the bundled classifiers and the pixels themselves."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffdistill.errors import CheckpointError
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.extractors.conv_net import ConvNet
from diffdistill.evaluation.extractors.emoji_net import EmojiNet
from diffdistill.files import read_json, sha256

SHAPE = ("image_channels", "image_size", "num_classes", "convs_per_block")


class ClassifierFeatures(FeatureExtractor):
    """Penultimate features of a `ConvNet`, in units of their mean variance over the data it was trained on.

    The folder is one of examples/fashion_mnist/train_features.py.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        weights = folder / "model.safetensors"
        try:
            config = read_json(folder / "config.json")
            self.sha256 = sha256(weights)
            if self.sha256 != config["sha256"]:
                raise CheckpointError(
                    f"{weights} is damaged: its SHA-256 is {self.sha256}, config.json says {config['sha256']}"
                )
            net = self.build(config)
            net.load_state_dict(load_file(weights))
            self.channels = config["image_channels"]
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} is not a folder of features (config.json and model.safetensors): {error}"
            ) from error
        self.id, self.dim, self.device = config["id"], config["dim"], device
        self.size = (config["image_size"], config["image_size"])
        self.net = net.fused().requires_grad_(False).to(device)

    def build(self, config: dict[str, Any]) -> ConvNet:
        return ConvNet(config["channels"], config["dim"], **{name: config[name] for name in SHAPE})

    def embed(self, images: Tensor) -> Tensor:
        return self.net.features(images / 127.5 - 1)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        return self.net.head(features.float().to(self.device).relu()).double().softmax(1).cpu()


class EmojiFeatures(ClassifierFeatures):
    """Penultimate features of the judge `EmojiNet`."""

    def build(self, config: dict[str, Any]) -> ConvNet:
        return EmojiNet(config["channels"], config["dim"])

    @torch.no_grad()
    def styles(self, features: Tensor) -> Tensor:
        """Probabilities `(N, 2)` of the styles, noto and twemoji, of features."""
        assert isinstance(self.net, EmojiNet)
        return self.net.style(features.float().to(self.device).relu()).double().softmax(1).cpu()


class PixelFeatures(FeatureExtractor):
    """The grey values of an image of `size` pixels, scaled to [0, 1]: a baseline without weights."""

    def __init__(self, size: tuple[int, int] = (16, 16), channels: int = 3) -> None:
        self.size, self.channels, self.dim = size, channels, channels * size[0] * size[1]
        self.id = f"pixels-{channels}x{size[0]}x{size[1]}"
        self.sha256 = hashlib.sha256(self.id.encode()).hexdigest()

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() / 255
