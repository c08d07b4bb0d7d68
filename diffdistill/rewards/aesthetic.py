"""The LAION aesthetic predictor: a linear head on the image features of CLIP ViT-L/14. It reads no prompt."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from diffdistill.files import PICKLES
from diffdistill.rewards.clip import read_clip
from diffdistill.rewards.preprocess import preprocess
from diffdistill.rewards.protocol import Prompts
from diffdistill.rewards.weights import beside, digest, features_of, fetched, fill, find_file, read_tensors

CLIP, HEAD = "openai/clip-vit-large-patch14", "trl-lib/ddpo-aesthetic-predictor"
HEADS = [
    f"{name}{end}"
    for name in ("sac+logos+ava1-l14-linearMSE", "aesthetic*", "*linearMSE")
    for end in (".safetensors", *PICKLES)
]


def linear_head(width: int) -> nn.Sequential:
    """width -> 1024 -> 128 -> 64 -> 16 -> 1 with dropout between and no activations, as published."""
    dropouts: list[nn.Module] = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
    sizes = (width, 1024, 128, 64, 16, 1)
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b), *dropouts[k : k + 1]]
    return nn.Sequential(*layers)


def read_head(tensors: dict[str, Tensor], prefix: str, width: int, file: Path) -> nn.Sequential:
    """The head from tensors named `{prefix}{0,2,4,6,7}.{weight,bias}`; CheckpointError if they do not fit."""
    head = linear_head(width)
    fill(head, {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}, file)
    return head.eval().requires_grad_(False)


class AestheticReward:
    """R(x) = head(f(x) / ||f(x)||), about 1 (ugly) to 10 (sac+logos+ava1-l14-linearMSE)."""

    name, differentiable, needs_prompt = "aesthetic", True, False

    def __init__(self, model: Any, head: nn.Module, version: str, batch_size: int = 16):
        self.model, self.head = model.eval().requires_grad_(False), head
        self.version, self.batch_size = version, batch_size
        self.size = int(model.config.vision_config.image_size)

    @classmethod
    def load(cls, where: str | None = None, batch_size: int = 16) -> "AestheticReward":
        """From a folder with the head and the CLIP, or the head alone and the CLIP from the Hub's cache."""
        folder = fetched("aesthetic", where, HEAD, ["*.safetensors", "*.pth"])
        file = find_file("aesthetic", folder, HEADS)
        model = read_clip(beside(folder, CLIP, ["config.json", "model.safetensors"], ("config.json",)))
        head = read_head(read_tensors(file), "layers.", int(model.config.projection_dim), file)
        return cls(model, head, f"aesthetic {digest([file])}", batch_size)

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        """Images `(B, 1 or 3, H, W)` in [0, 1] -> `(B,)`, attached to the images; prompts are ignored."""
        parts = [
            normalize(features_of(self.model.get_image_features(pixel_values=preprocess(part, self.size))).float())
            for part in images.split(self.batch_size)
        ]
        scores: Tensor = self.head(torch.cat(parts))
        return scores.squeeze(1)

    def to(self, device: str | torch.device) -> "AestheticReward":
        self.model, self.head = self.model.to(device), self.head.to(device)
        return self
