"""A network of the user's as TorchScript, and how TorchScript is opened."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from diffdistill.errors import CheckpointError, DataError
from diffdistill.evaluation.extractors.base import FeatureExtractor, large_batch
from diffdistill.files import BROKEN_ZIP, sha256


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`, which a `torch.save` archive resembles."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, *BROKEN_ZIP):
        return False
    return "constants.pkl" in inside or any(name.startswith("code/") for name in inside)


def load_torchscript(path: Path, device: torch.device) -> nn.Module:
    """Open a TorchScript file; CheckpointError for anything else.

    TorchScript is a program: it can read and write files (`torch.from_file`, `torch.save`), so the caller has checked
    a digest that is known, or asked the user for leave (`--allow-code`).
    """
    try:
        with warnings.catch_warnings():
            # The format is deprecated for new models; the weights that everybody measures with come in no other.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
            return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not TorchScript: give a file written by torch.jit.save") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


class TorchScriptFeatures(FeatureExtractor):
    """A TorchScript network that maps uint8 RGB `(N, 3, H, W)` to features `(N, d)` and resizes by itself."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.net = load_torchscript(path, device)
        self.id, self.sha256 = f"torchscript:{path.stem}", sha256(path)
        self.device, self.batch_size = device, large_batch(device)
        probe = self._call(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=device))
        if probe.ndim != 2 or len(probe) != 2:
            raise CheckpointError(
                f"{path} maps (2, 3, 64, 64) uint8 images to {tuple(probe.shape)}: it must give (2, d), give "
                "another file"
            )
        self.dim = probe.shape[1]

    def embed(self, images: Tensor) -> Tensor:
        return self._call(images.round().to(torch.uint8))

    @torch.no_grad()
    def _call(self, images: Tensor) -> Tensor:
        try:
            features = self.net(images)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            given = f"uint8 images {tuple(images.shape)}"
            raise DataError(f"the network '{self.id}' does not take {given}: {reason}") from error
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise CheckpointError(f"the network '{self.id}' returns no tensor of floats: it must give features (N, d)")
        return features
