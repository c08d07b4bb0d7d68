"""Small networks in diffusers' form: one of arbitrary weights, and one that is exact for Gaussian pixels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from by_hand import LOG_SIGMAS
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, silu

from diffdistill.data import ImageSet


class SmallNetwork(ModelMixin, ConfigMixin):
    """Two convolutions down, two up, a millisecond: smooth, non-linear, with time and class in all of it."""

    @register_to_config
    def __init__(
        self, sample_size: int = 8, in_channels: int = 1, out_channels: int = 1, num_class_embeds: int | None = None
    ):
        super().__init__()
        width = 8
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time = nn.Linear(2, width)
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.down_blocks = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1)])
        self.mid_block = nn.Conv2d(width, width, 4, 2, 1)
        self.up = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(
        self, x: Tensor, time: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        at = torch.stack([(time / 250).sin(), (time / 1000).cos()], 1)
        about = self.time(at)
        if class_labels is not None:
            about = about + 2 * self.class_embedding(class_labels)
        about = about[:, :, None, None]
        wide = self.down_blocks[0](silu(self.conv_in(x) + about))
        middle = self.mid_block(silu(wide + about))
        up = nn.functional.interpolate(silu(middle), scale_factor=2.0)
        return (self.conv_out(silu(self.up(up + wide) + about)),)


def small_network(classes: int | None = 4, seed: int = 0) -> SmallNetwork:
    torch.manual_seed(seed)
    network = SmallNetwork(num_class_embeds=classes)
    nn.init.normal_(network.conv_out.weight, std=0.3)
    return network.eval()


class Statistics(nn.Module):
    """Features (B, 4, 4, 4) in which the log ratio of two nearby Gaussians is linear: x / v, x^2 / v^2, 1 / v, 1."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        v = sigma**2 + 0.25
        maps = torch.cat([x / v, (x / v) ** 2, (1 / v).expand_as(x), torch.ones_like(x)], 1)
        return avg_pool2d(maps, x.shape[-1] // 4)


class GaussianNetwork(ModelMixin, ConfigMixin):
    """The network whose denoiser is exact for pixels N(mean, scale^2), both learned, behind any process.

    D(x_t, sigma) = (scale^2 x_t + sigma^2 mean) / (scale^2 + sigma^2), a mean for each class if there are any.
    """

    @register_to_config
    def __init__(
        self,
        mean: float = 0.0,
        scale: float = 0.5,
        kind: str = "edm",
        sigma_data: float = 0.5,
        sample_size: int = 8,
        in_channels: int = 1,
        out_channels: int = 1,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(float(mean)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, 1)
            nn.init.zeros_(self.class_embedding.weight)
        self.mid_block = Statistics()

    def forward(
        self, x_in: Tensor, time: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        sigma = self.level(time).reshape(-1, 1, 1, 1)
        kind, d, alpha = self.config.kind, self.config.sigma_data, (1 + sigma**2) ** -0.5
        x = x_in * {"edm": (sigma**2 + d**2) ** 0.5, "flow": 1 + sigma}.get(kind, 1 / alpha)
        self.mid_block(x, sigma)
        mean = self.centre
        if class_labels is not None:
            mean = mean + self.class_embedding(class_labels)[:, :, None, None]
        v = (2 * self.log_scale).exp()
        x0 = (v * x + sigma**2 * mean) / (v + sigma**2)
        eps = (x - x0) / sigma
        return (
            {
                "edm": lambda: ((sigma**2 + d**2) * x0 - d**2 * x) / (sigma * d * (sigma**2 + d**2) ** 0.5),
                "epsilon": lambda: eps,
                "v_prediction": lambda: alpha * eps - sigma * alpha * x0,
                "sample": lambda: x0,
                "flow": lambda: eps - x0,
            }[kind](),
        )

    def level(self, time: Tensor) -> Tensor:
        if self.config.kind == "edm":
            return (time / 250).exp()
        if self.config.kind == "flow":
            return time / (1000 - time)
        table = torch.tensor(LOG_SIGMAS, dtype=torch.float32)
        below = time.long().clamp(0, 998)
        return (table[below] + (time - below) * (table[below + 1] - table[below])).exp()

    @property
    def gaussian(self) -> tuple[float, float]:
        """(mean, scale) as they are now."""
        return self.centre.item(), self.log_scale.exp().item()


def gaussian_kl(mean: Any, scale: Any, mean_p: float, scale_p: float) -> float:
    """KL(N(mean, scale^2) || N(mean_p, scale_p^2)) in nats a pixel."""
    return math.log(scale_p / scale) + (scale**2 + (mean - mean_p) ** 2) / (2 * scale_p**2) - 0.5


def gaussian_data(means: Sequence[float], scale: float, count: int = 512, size: int = 8) -> ImageSet:
    """Images of independent pixels N(mean, scale^2), as bytes; labelled, if there is more than one mean."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % len(means)
    mean = torch.tensor(means)[labels].reshape(-1, 1, 1, 1)
    x = mean + scale * torch.randn(count, 1, size, size, generator=generator)
    pixels = (127.5 * (x + 1)).round().clamp(0, 255).byte()
    return ImageSet(pixels, labels if len(means) > 1 else None, None, None, "pixels", "0" * 64)
