"""Inception v3 of 2015, the network of published FIDs: TensorFlow's weights as TorchScript (clean-fid, StyleGAN)."""

import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import CheckpointError
from diffdistill.evaluation.extractors.base import FeatureExtractor, large_batch
from diffdistill.evaluation.extractors.torchscript import load_torchscript
from diffdistill.files import cache_dir, expanded, replacing, sha256

FILE = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
ID = "inception-2015-12-05"  # of the published weights, in any form
SIZE = 299


def find_weights(given: str | None) -> Path:
    """The file given, the one in the cache, or a download into the cache; else CheckpointError."""
    if given:
        path = expanded(given)
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}: download {URL} and give its path as inception:FILE")
        return path
    path = cache_dir() / "features" / FILE
    if not path.is_file() or sha256(path) != SHA256:  # absent, or damaged since
        _download(path)
    return path


def _download(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            with urllib.request.urlopen(URL, timeout=20) as response, partial.open("wb") as file:
                shutil.copyfileobj(response, file)
            _check(partial)
    except (OSError, urllib.error.URLError) as error:
        raise CheckpointError(
            f"no Inception weights: {URL} cannot be fetched ({error}); download it elsewhere and put it at {path}, "
            "or give its path as inception:FILE"
        ) from error


def _check(path: Path) -> str:
    digest = sha256(path)
    if digest != SHA256:
        raise CheckpointError(f"{path} is not Inception of 2015: its SHA-256 is {digest}, expected {SHA256}")
    return digest


class Inception(FeatureExtractor):
    """2,048 pool features of 299x299 pixels; resize `tf` below, as for CIFAR and ImageNet figures, `clean` above."""

    id, dim, size = ID, 2048, (SIZE, SIZE)

    def default_mode(self, height: int, width: int) -> str:
        return "tf" if max(height, width) < SIZE else "clean"


class InceptionFeatures(Inception):
    """The published TorchScript and no other."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.sha256 = _check(path)
        self.net: Any = load_torchscript(path, device)
        self.device, self.batch_size = device, large_batch(device)

    def embed(self, images: Tensor) -> Tensor:
        return self.net.layers((images - 128) / 128).flatten(1)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """The 1,008 classes without the output bias, as in the original Inception Score (1606.03498)."""
        weight = self.net.output.weight
        return F.linear(features.to(weight), weight).cpu().double().softmax(1)
