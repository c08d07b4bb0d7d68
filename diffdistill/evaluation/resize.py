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


def _axis(size_in: int, size_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(size_out, dtype=torch.float32, device=device) * (size_in / size_out)
    low = position.floor().long()
    return low, (low + 1).clamp(max=size_in - 1), position - low


def _resize_tf(images: Tensor, height: int, width: int) -> Tensor:
    top, bottom, down = _axis(images.shape[2], height, images.device)
    left, right, across = _axis(images.shape[3], width, images.device)
    rows = torch.lerp(images[:, :, top], images[:, :, bottom], down[:, None])
    return torch.lerp(rows[..., left], rows[..., right], across)


def _resize_clean(images: Tensor, height: int, width: int) -> Tensor:
    planes = images.flatten(0, 1).numpy()
    resized = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in planes
    ]
    return torch.from_numpy(np.stack(resized)).unflatten(0, images.shape[:2]).clamp(0, 255)


def bicubic_weights(size_in: int, size_out: int) -> Tensor:
    """`(size_out, size_in)`, float64: the weights that Pillow's bicubic gives to the input pixels of an axis."""
    wide = max(size_in / size_out, 1.0)  # a filter as wide as the pixels that become one
    centre = (torch.arange(size_out, dtype=torch.float64)[:, None] + 0.5) * (size_in / size_out)
    place = torch.arange(size_in, dtype=torch.float64)
    # Pillow cuts the filter at whole pixels, where it is zero but for rounding.
    inside = (place >= (centre - 2 * wide + 0.5).floor()) & (place < (centre + 2 * wide + 0.5).floor())
    x = ((place + 0.5 - centre) / wide).abs()
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * inside
    return weights / weights.sum(1, keepdim=True)


def _resize_clean_there(images: Tensor, height: int, width: int) -> Tensor:
    """The same as products with Pillow's weights, in its order and precision, wherever the images are."""
    down, across = (
        bicubic_weights(*sizes).to(images.device) for sizes in ((images.shape[2], height), (images.shape[3], width))
    )
    rows = (images.double() @ across.T).float()
    return (down @ rows.double()).float().clamp(0, 255)


def resize(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Float32 `(N, C, H, W)` in [0, 255] -> `(N, C, *size)` where the images are; unchanged where the size is right.

    On a CPU `clean` is Pillow itself, elsewhere its arithmetic, which needs float64.
    """
    if tuple(images.shape[2:]) == tuple(size):
        return images
    clean = _resize_clean if images.device.type == "cpu" else _resize_clean_there
    return (_resize_tf if mode == "tf" else clean)(images.contiguous(), *size)
