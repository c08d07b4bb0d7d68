"""The one interface of every feature extractor: uint8 images in, float64 features out, an id and a SHA-256."""

import torch
from torch import Tensor

from diffdistill.errors import CheckpointError
from diffdistill.evaluation.resize import check_images, resize, with_channels

SMALL = 64  # pixels: networks of larger pictures are meant for those of any size, made as large as theirs


def large_batch(device: torch.device) -> int:
    """Images at a time through a network of a hundred million operations an image or more."""
    return 16 if device.type == "cpu" else 64


class FeatureExtractor:
    """Images `(N, C, H, W)` uint8 -> features `(N, dim)` float64 on the CPU.

    A subclass sets the attributes and implements `embed`. On a CPU the network always sees `batch_size` images, the
    last chunk filled up with copies, because the last bits of a convolution depend on how many images share the call.
    So an image's features depend on the image alone, not on its place or on the caller's batches.

    Attributes:
        id, sha256: what measured; printed with every number and part of every cache key.
        dim: number of features.
        size: height and width that the network expects; None: any.
        channels: 1 or 3; None: any.
        mode: `tf`, `clean`, or None for `default_mode`; used where the image size differs from `size` (see resize.py).
    """

    id: str
    sha256: str
    dim: int
    size: tuple[int, int] | None = None
    channels: int | None = 3
    mode: str | None = None
    batch_size: int = 250
    device: torch.device = torch.device("cpu")

    def embed(self, images: Tensor) -> Tensor:
        """Float32 images `(N, channels, *size)` in [0, 255] on the device -> `(N, dim)`."""
        raise NotImplementedError

    def probabilities(self, features: Tensor) -> Tensor | None:
        """Class probabilities `(N, K)` of features, for the Inception Score; None without a classifier."""
        return None

    def default_mode(self, height: int, width: int) -> str:
        """The resize of images of this size where the user chose none."""
        return "clean"

    def resize_used(self, height: int, width: int) -> str:
        """The resize that images of this size get: `none`, `tf` or `clean`."""
        if self.size is None or (height, width) == self.size:
            return "none"
        return self.mode or self.default_mode(height, width)

    def unseen(self, channels: int, height: int, width: int) -> list[str]:
        """What these features do not see of images of this shape, a sentence each: a figure says nothing about it."""
        texts = []
        if self.channels == 1 and channels == 3:
            texts.append(f"the features '{self.id}' see gray alone: the figures say nothing about colours")
        if self.size and max(self.size) <= SMALL and min(height, width) > 2 * max(self.size):
            seen = "x".join(map(str, self.size))
            texts.append(
                f"the features '{self.id}' see {seen} pixels, and there are pictures of {height}x{width}: the figures "
                f"say nothing about their details"
            )
        return texts

    def placed(self, images: Tensor) -> Tensor:
        """Float32, where they are resized: on the device, or on the CPU where the device may have no float64."""
        return images.to(self.device if self.device.type == "cuda" else "cpu").float()

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 `(N, C, H, W)` -> what `embed` expects."""
        x = self.placed(images)
        x = with_channels(x, self.channels) if self.channels else x
        return (resize(x, self.size, self.resize_used(*images.shape[2:])) if self.size else x).to(self.device)

    def _embed_chunk(self, x: Tensor) -> Tensor:
        missing = self.batch_size - len(x) if self.device.type == "cpu" else 0
        return self.embed(torch.cat([x, x[-1:].expand(missing, -1, -1, -1)]) if missing else x)[: len(x)]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        chunks = [self._embed_chunk(self.prepare(x)).cpu().double() for x in images.split(self.batch_size) if len(x)]
        features = torch.cat(chunks) if chunks else torch.empty(0, self.dim, dtype=torch.float64)
        if features.shape != (len(images), self.dim):
            raise CheckpointError(
                f"features '{self.id}' have shape {tuple(features.shape)}, expected {(len(images), self.dim)}: "
                "the extractor does not measure each image"
            )
        if not features.isfinite().all():
            raise CheckpointError(
                f"features '{self.id}' are NaN or infinite for {int((~features.isfinite()).any(1).sum())} images: "
                "the extractor's weights are damaged; load them again"
            )
        return features
