"""What the processors of CLIP and BLIP do to a picture, on tensors and with a gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def soft_clamp(images: Tensor) -> Tensor:
    """The value is clamped to [0, 1], the gradient is not: a pixel out of range can still be called back."""
    return images + (images.clamp(0, 1) - images).detach()


def preprocess(
    images: Tensor, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """Shorter side to `size` (bicubic, antialiased), centre cut out, channels normalised; float32.

    images: `(B, 1 or 3, H, W)` in [0, 1]; gray becomes three equal channels. Returns `(B, 3, size, size)`. It differs
    from the processors of transformers by their rounding to 8 bits only, and it is differentiable.
    """
    x = images.float().expand(-1, 3, -1, -1)
    height, width = x.shape[2:]
    shorter = min(height, width)
    if shorter != size:
        # Columns, then rows, clamped each time, and antialiased, as Pillow does; without antialiasing a reward of a
        # large picture would see only every few pixels.
        for shape in ((height, size * width // shorter), (size * height // shorter, size * width // shorter)):
            x = soft_clamp(interpolate(x, shape, mode="bicubic", antialias=True, align_corners=False))
    top, left = (x.shape[2] - size) // 2, (x.shape[3] - size) // 2
    x = x[:, :, top : top + size, left : left + size]
    middle, scale = (torch.tensor(values, device=x.device)[:, None, None] for values in (mean, std))
    return (x - middle) / scale
