"""Heads that read a network's features and say log p_real / p_student (2405.14867, section 4.3)."""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from diffdistill.denoiser import Condition, Denoiser


class Head(nn.Sequential):
    """`(B, C, h, w)` features -> logit `(B,)`: strided 4x4 convolutions with GroupNorm and SiLU down to 4x4 or less, then one number."""

    def __init__(self, channels: int, size: int):
        layers: list[nn.Module] = []
        while size > 4:
            layers += [nn.Conv2d(channels, channels, 4, 2, 1), nn.GroupNorm(gcd(32, channels), channels), nn.SiLU()]
            size = size // 2
        super().__init__(*layers, nn.Conv2d(channels, 1, size), nn.Flatten(0))


class Discriminator(nn.Module):
    """One head a tap; the logit of a sample is their mean, so its ratio is the geometric mean of theirs.

    The condition and the level reach the heads through the network's features.
    """

    def __init__(self, network: Denoiser, taps: Sequence[str]):
        super().__init__()
        self.taps = tuple(taps)
        device = next(network.parameters()).device
        probe = torch.zeros(1, *network.image_shape, device=device)
        cond = None if network.num_classes is None else torch.zeros(1, dtype=torch.int64, device=device)
        with torch.no_grad():
            _, features = network.tapped(probe, torch.ones(1, device=device), cond, self.taps, stop=True)
        self.heads = nn.ModuleList(Head(f.shape[1], f.shape[2]) for f in features).to(device)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the taps, each `(B, C, h, w)` -> logit `(B,)`."""
        return torch.stack([head(f.float()) for head, f in zip(self.heads, features, strict=True)]).mean(0)

    def look(self, network: Denoiser, x_t: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """Logit `(B,)` of noised images, the pass through the network ending at the last tap."""
        return self(network.tapped(x_t, sigma, cond, self.taps, stop=True)[1])
