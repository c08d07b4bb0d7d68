"""A small convolutional classifier whose penultimate layer measures Fréchet distances, and its folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffdistill.errors import CheckpointError
from diffdistill.files import read_json, sha256

SHAPE = ("image_channels", "image_size", "num_classes", "convs_per_block")


class ConvNet(nn.Module):
    """Blocks of 3x3 convolutions, each block half the side, and a linear layer: `features(x)` is `(N, dim)`,
    `forward(x)` the class logits.

    The features are taken *before* the last ReLU, so that their law is closer to a Gaussian (which the Fréchet
    distance assumes) and no coordinate is constant.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        image_channels: int,
        image_size: int,
        num_classes: int,
        convs_per_block: int,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for c_in, c_out in zip((image_channels, *channels), channels, strict=False):
            for k in range(convs_per_block):
                blocks += [nn.Conv2d(c_out if k else c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)]
                blocks += [nn.MaxPool2d(2)] if k == convs_per_block - 1 else []
                blocks += [nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        self.embed = nn.Linear(channels[-1] * (image_size >> len(channels)) ** 2, dim)
        self.head = nn.Linear(dim, num_classes)

    def fused(self) -> "ConvNet":
        """For measuring only: normalisation folded into the convolutions, memory laid out channels last."""
        layers: list[nn.Module] = []
        for layer in self.eval().blocks:
            if isinstance(layer, nn.BatchNorm2d):
                convolution = layers.pop()
                assert isinstance(convolution, nn.Conv2d)
                layers.append(fuse_conv_bn_eval(convolution, layer))
            else:
                layers.append(layer)
        self.blocks = nn.Sequential(*layers)
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` in [-1, 1] -> `(N, dim)`."""
        return self.embed(self.blocks(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x)))


def build_conv_net(config: dict[str, Any]) -> ConvNet:
    """The network that a folder's config.json describes, without its weights."""
    return ConvNet(config["channels"], config["dim"], **{name: config[name] for name in SHAPE})


def load_conv_net(
    folder: Path, build: Callable[[dict[str, Any]], ConvNet] = build_conv_net
) -> tuple[ConvNet, dict[str, Any]]:
    """A folder of examples/fashion_mnist/train_features.py: the network, frozen and fused for measuring, and its
    config.json.

    Raises CheckpointError where files are missing, or the weights are not those of the SHA-256 in config.json.
    """
    weights = folder / "model.safetensors"
    try:
        config = read_json(folder / "config.json")
        digest = sha256(weights)
        if digest != config["sha256"]:
            raise CheckpointError(
                f"{weights} is damaged: its SHA-256 is {digest}, config.json says {config['sha256']}"
            )
        net = build(config)
        net.load_state_dict(load_file(weights))
        config["id"], config["image_channels"], config["image_size"], config["dim"]
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is not a folder of features (config.json and model.safetensors): {error}"
        ) from error
    return net.fused().requires_grad_(False), config
