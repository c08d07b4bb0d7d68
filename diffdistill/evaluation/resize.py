"""From images of any size and number of channels to what a network expects; the resize is part of an FID's protocol.

`tf`    bilinear without antialiasing and with TensorFlow 1's corner convention, as inside the Inception graph of 2015:
        output pixel i looks at input position i * size_in / size_out. CIFAR and ImageNet figures use it.
`clean` Pillow's antialiased bicubic on float channels, clipped to [0, 255] and not rounded (2104.11222). Text-to-image
        figures use it.
At 32 -> 299 pixels the two differ by up to 110 grey values: figures of different modes do not compare.
"""

from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdistill.errors import ConfigError, DataError

Mode = Literal["tf", "clean"]
MODES: tuple[str, ...] = get_args(Mode)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L


def check_mode(mode: str) -> None:
    """Raise ConfigError unless it is one of `MODES`."""
    if mode not in MODES:
        raise ConfigError(f"unknown resize mode '{mode}': allowed are {', '.join(MODES)}")


def check_images(images: Tensor) -> None:
    """Raise DataError unless `images` is uint8 `(N, C, H, W)` with one or three channels."""
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.uint8
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
    ):
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"images to evaluate must be uint8 tensors (N, C, H, W) with C = 1 or 3, not {given}")


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Gray repeated to RGB, or RGB weighted to gray; `(N, C, H, W)` float -> `(N, channels, H, W)`."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _axis(size_in: int, size_out: int) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(size_out, dtype=torch.float32) * (size_in / size_out)
    low = position.floor().long()
    return low, (low + 1).clamp(max=size_in - 1), position - low


def _resize_tf(images: Tensor, height: int, width: int) -> Tensor:
    top, bottom, down = _axis(images.shape[2], height)
    left, right, across = _axis(images.shape[3], width)
    rows = torch.lerp(images[:, :, top], images[:, :, bottom], down[:, None])
    return torch.lerp(rows[..., left], rows[..., right], across)


def _resize_clean(images: Tensor, height: int, width: int) -> Tensor:
    planes = images.flatten(0, 1).numpy()
    resized = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in planes
    ]
    return torch.from_numpy(np.stack(resized)).unflatten(0, images.shape[:2]).clamp(0, 255)


def resize(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Float32 `(N, C, H, W)` in [0, 255] on the CPU -> `(N, C, *size)`; unchanged where the size is right already."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return (_resize_tf if mode == "tf" else _resize_clean)(images.contiguous(), *size)
