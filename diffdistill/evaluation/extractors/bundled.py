"""Extractors that need no download: the bundled classifiers and the pixels themselves."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffdistill.errors import CheckpointError
from diffdistill.evaluation.extractors.base import FeatureExtractor, file_sha256
from diffdistill.evaluation.extractors.emoji_net import EmojiNet
from diffdistill.evaluation.extractors.fashion_net import FashionNet


class FashionFeatures(FeatureExtractor):
    """Penultimate features of `FashionNet`, in units in which their mean variance over Fashion-MNIST is 1."""

    channels = 1
    network: type[FashionNet] | type[EmojiNet] = FashionNet

    def __init__(self, folder: Path, device: torch.device) -> None:
        weights = folder / "model.safetensors"
        try:
            config = json.loads((folder / "config.json").read_text())
            self.sha256 = file_sha256(weights)
            if self.sha256 != config["sha256"]:
                raise CheckpointError(
                    f"{weights} is damaged: its SHA-256 is {self.sha256}, config.json says {config['sha256']}"
                )
            net = self.network(config["channels"], config["dim"])
            net.load_state_dict(load_file(weights))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} is not a folder of features (config.json and model.safetensors): {error}"
            ) from error
        self.id, self.dim, self.device = config["id"], config["dim"], device
        self.size = (config["image_size"], config["image_size"])
        self.net: FashionNet | EmojiNet = net.fused().requires_grad_(False).to(device)

    def embed(self, images: Tensor) -> Tensor:
        return self.net.features(images / 127.5 - 1)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        return self.net.head(features.float().to(self.device).relu()).double().softmax(1).cpu()


class EmojiFeatures(FashionFeatures):
    """Penultimate features of the judge `EmojiNet`, in units of their mean variance over its data."""

    channels = 3
    network = EmojiNet

    @torch.no_grad()
    def styles(self, features: Tensor) -> Tensor:
        """Probabilities `(N, 2)` of `diffdistill.data.emoji.STYLES`, of features."""
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
