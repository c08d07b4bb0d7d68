"""Layers of the EDM networks: resampling with a filter, noise embeddings, the residual block.

Sources: DDPM++ and NCSN++ (2011.13456, appendix H), ADM (2105.05233, section 3), as EDM trains them (2206.00364,
the appendix on network architectures). Parameters have the names and shapes of EDM's public files.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Resample(nn.Module):
    """Halve or double the resolution with the separable filter `taps`, normalised to keep the mean.

    (1, 1) is a 2x2 box: averaging down, repeating up; (1, 3, 3, 1) smooths (1912.04958, as NCSN++ uses it).
    """

    kernel: Tensor

    def __init__(self, direction: Literal["up", "down"], taps: Sequence[float]):
        super().__init__()
        self.direction = direction
        line = torch.tensor(taps, dtype=torch.float32)
        # Not part of the state: it follows from the config.
        self.register_buffer("kernel", torch.outer(line, line)[None, None] / line.sum() ** 2, persistent=False)

    def forward(self, x: Tensor, padding: int | None = None) -> Tensor:
        channels, size = x.shape[1], self.kernel.shape[-1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, size, size)
        padding = (size - 1) // 2 if padding is None else padding
        if self.direction == "down":
            return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)


class Conv(nn.Conv2d):
    """A convolution that keeps the size, on the resampled input if `resample` is given."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, resample: Resample | None = None):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.resample is None else self.resample(x))


class PyramidDown(nn.Conv2d):
    """NCSN++'s way down for its image pyramid: a 3x3 convolution first, then the filter.

    The whole margin of both is put in at once, before the convolution, so the borders differ from two padded steps.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]):
        super().__init__(in_channels, out_channels, 3, padding=1 + (len(taps) - 1) // 2)
        self.resample = Resample("down", taps)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(super().forward(x), padding=0)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Up to 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def sinusoids(values: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """`(B,)` values and `(n,)` angular frequencies -> cosines and sines, each `(B, n)`, float32."""
    angles = values.float()[:, None] * frequencies[None]
    return angles.cos(), angles.sin()


def geometric_frequencies(count: int, *, reach_end: bool, device: torch.device) -> Tensor:
    """`(count,)` frequencies 1 ... 1e-4 (1706.03762, section 3.5); reach_end: the last is 1e-4 itself (DDPM)."""
    ramp = torch.arange(count, dtype=torch.float32, device=device) / (count - int(reach_end))
    return (1 / 10000) ** ramp


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution, twice, the embedding in between; self-attention if `heads` > 0.

    x, `(B, C, H, W)`, and embedding `(B, E)` -> `(B, C', H', W')`. adaptive: the embedding scales and shifts the
    second norm's output (ADM), else it is added before it (DDPM++). skip_scale: factor after each residual sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        heads: int = 0,
        direction: Literal["up", "down"] | None = None,
        taps: Sequence[float] = (1, 1),
        project_skip: bool,
        adaptive: bool,
        skip_scale: float,
        eps: float,
        dropout: float,
    ):
        super().__init__()
        self.heads = heads
        self.adaptive, self.skip_scale, self.dropout = adaptive, skip_scale, dropout
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = Conv(in_channels, out_channels, 3, _resample(direction, taps))
        self.affine = nn.Linear(embedding, out_channels * (2 if adaptive else 1))
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = _zeroed(Conv(out_channels, out_channels, 3))
        if in_channels != out_channels or (direction is not None and project_skip):
            self.skip: nn.Module = Conv(in_channels, out_channels, 1, _resample(direction, taps))
        else:
            self.skip = _resample(direction, taps) or nn.Identity()
        if heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = _zeroed(Conv(out_channels, out_channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            h = shift + self.norm1(h) * (1 + scale)
        else:
            h = self.norm1(h + modulation)
        h = self.conv1(F.dropout(F.silu(h), self.dropout, self.training))
        x = (self.skip(x) + h) * self.skip_scale
        return (x + self.attention(x)) * self.skip_scale if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # In the public files the q, k and v of one channel lie side by side, heads outermost.
        packed = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        # Contiguous in the last dimension, or PyTorch's fused kernels refuse them.
        q, k, v = packed.permute(0, 1, 3, 4, 2).contiguous().unbind(2)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(-1, -2).reshape(x.shape))


def _resample(direction: Literal["up", "down"] | None, taps: Sequence[float]) -> Resample | None:
    return None if direction is None else Resample(direction, taps)


def _zeroed(layer: Conv) -> Conv:
    """A residual branch that starts at (almost) nothing (2105.05233, and DDPM before it)."""
    nn.init.normal_(layer.weight, std=1e-5 / math.sqrt(layer.weight[0].numel()))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
