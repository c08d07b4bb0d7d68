"""One More Step: a start that a small network makes of the prompt, for models whose last step keeps some signal.

As of the signal leak (`signal_leak.py`), a sampler of a model of Stable Diffusion's schedule should begin with

    x_T = sqrt(abar_T) x0 + sqrt(1 - abar_T) eps.

Here x0 is psi(z, c), the guess of a network that sees noise z and the condition c (2311.15744), trained by

    L = E || psi(z, c) - x0 ||^2,     z ~ N(0, 1) independent of x0.

As z says nothing of x0, the best psi is E[x0 | c], whatever z: it gives each prompt its own brightness, which a leak
of all data does not, and it can mend the mean, never the spread, which a leak does. One public code multiplies eps by
1 - abar_T (0.9953 for Stable Diffusion) in place of its root (0.9977). Departures: psi is a small picture made of the
condition, not a UNet, as its best answer is smooth; it may still look at z. Nothing here was trained on Stable
Diffusion.
"""

import math
from collections.abc import Iterable
from itertools import islice

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import ConfigError, DataError
from diffdistill.sampling.signal_leak import leaked


class OneMoreStep(ModelMixin, ConfigMixin):
    """psi(z, c): a picture of `side` x `side` made of the condition, and of z, enlarged to that of the data.

    Args:
        shape: `(C, H, W)` of images, or of latents in the network's units.
        classes: conditions are labels `(B,)` int64 below it; None: features `(B, features)`, such as the pooled
            embeddings of prompts; both None: there is no condition.
        side: of the small picture; 1 mends the mean colour alone.
        width: of the layer between a condition's features and the picture.

    `save_pretrained` and `from_pretrained` are diffusers'. Raises ConfigError for classes beside features, and for a
    side larger than the image's.

    >>> psi = OneMoreStep((4, 16, 16), classes=10)
    >>> psi(torch.randn(2, 4, 16, 16), torch.tensor([3, 7])).shape
    torch.Size([2, 4, 16, 16])
    >>> bool((psi.start(torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([3, 7]), 0.0) != 0).all())
    True
    """

    @register_to_config
    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int | None = None,
        features: int | None = None,
        side: int = 8,
        width: int = 128,
    ):
        super().__init__()
        channels, height, width_of_image = shape
        if classes is not None and features is not None:
            raise ConfigError("a One-More-Step network was given classes and features; conditions are one of them")
        if not 1 <= side <= min(height, width_of_image):
            raise ConfigError(
                f"side is {side}, and the image is {height}x{width_of_image}; give 1 to the shorter side"
            )
        values = channels * side * side
        self.of_condition: nn.Module
        if classes is not None:
            self.of_condition = nn.Embedding(classes, values)
            nn.init.zeros_(self.of_condition.weight)
        elif features is not None:
            last = nn.Linear(width, values)
            nn.init.zeros_(last.weight)
            self.of_condition = nn.Sequential(nn.Linear(features, width), nn.SiLU(), last)
        else:
            self.of_condition = nn.Identity()
        self.mean = nn.Parameter(torch.zeros(values))
        self.of_noise = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.of_noise.weight)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """The guess of x0, `(B, C, H, W)`; z: `(B, C, H, W)`, cond: as the class says, `(B,)` or `(B, features)`."""
        channels, height, width = self.config.shape
        side = self.config.side
        flat = self.mean.expand(len(z), -1)
        if not isinstance(self.of_condition, nn.Identity):
            if cond is None:
                raise ConfigError("this One-More-Step network was trained with conditions; give one for each image")
            flat = flat + self.of_condition(cond)
        small = flat.reshape(-1, channels, side, side) + self.of_noise(F.adaptive_avg_pool2d(z, side))
        return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def start(
        self,
        z: Tensor,
        noise: Tensor,
        cond: Tensor | None,
        alpha_bar: float,
        *,
        null: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """sqrt(abar) psi(z, c) + sqrt(1 - abar) noise, `(B, C, H, W)`: what a sampler begins with at its first step.

        alpha_bar: of the first time step that the sampler visits. null, guidance_scale: psi_null + w (psi_c -
        psi_null) in place of psi_c (2207.12598). In the package's coordinates, x / sqrt(abar), it is psi + sigma
        noise.
        """
        x0 = self(z, cond)
        if guidance_scale != 1.0:
            without = self(z, null)
            x0 = without + guidance_scale * (x0 - without)
        return leaked(noise, x0, alpha_bar)


def one_more_step_loss(psi: nn.Module, x0: Tensor, cond: Tensor | None, z: Tensor | None = None) -> Tensor:
    """mean || psi(z, c) - x0 ||^2 over the batch and its pixels, a scalar; z: drawn here unless given.

    >>> from diffdistill.sampling.one_more_step import OneMoreStep
    >>> x0 = torch.full((3, 1, 4, 4), 2.0)
    >>> one_more_step_loss(OneMoreStep((1, 4, 4), side=2), x0, None).item()
    4.0
    """
    z = torch.randn_like(x0) if z is None else z
    return (psi(z, cond) - x0).square().mean()


def train_one_more_step(
    psi: OneMoreStep, batches: Iterable[tuple[Tensor, Tensor | None]], steps: int, learning_rate: float = 1e-2
) -> list[float]:
    """Train in place by Adam on `steps` batches `(x0, cond)`, the rate falling to 0 as a cosine; returns the losses.

    batches: x0 `(B, C, H, W)` in the network's units, on psi's device, as is cond; as many as there are steps, or
    more. DataError where there are fewer.

    >>> from diffdistill.sampling.one_more_step import OneMoreStep
    >>> psi = OneMoreStep((1, 4, 4), side=1)
    >>> losses = train_one_more_step(psi, [(torch.full((8, 1, 4, 4), 0.5), None)] * 200, steps=200)
    >>> losses[-1] < 1e-3, abs(psi(torch.zeros(1, 1, 4, 4)).mean().item() - 0.5) < 0.02
    (True, True)
    """
    optimizer = torch.optim.Adam(psi.parameters(), lr=learning_rate)
    losses: list[Tensor] = []
    for x0, cond in islice(batches, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * len(losses) / steps)) / 2
        loss = one_more_step_loss(psi, x0, cond)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if len(losses) < steps or not losses:
        raise DataError(f"{len(losses)} batches were given for {steps} steps; give as many as there are steps")
    return torch.stack(losses).tolist()
