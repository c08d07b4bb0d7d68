"""`FluxPipeline`: a flow on packed latents; guidance-distilled kinds take the scale as an input."""

import math
from typing import Any

import torch
from torch import Tensor

from diffdistill.pipelines.text.adapter import AdapterFor, TransformerAdapter
from diffdistill.pipelines.text.kept import Condition

PATCH = 2  # latents are packed 2x2 into a token


class Flux(TransformerAdapter):
    @property
    def patch(self) -> int:
        return PATCH

    def native_size(self) -> int:
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    @property
    def embeds_guidance(self) -> bool:
        """Also where the network was distilled further and takes no scale at all (schnell): it needs no null pass."""
        return True

    def text(self, prompt: str) -> Condition:
        embeds, pooled, _ = self.pipeline.encode_prompt(prompt, None, device=self.device)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        rows, _, height, width = x_t.shape
        words = cond["encoder_hidden_states"].shape[1]
        takes_guidance = self.network.config.guidance_embeds
        guidance = torch.full((rows,), self.guidance, device=x_t.device) if takes_guidance else None
        output = network(
            hidden_states=pack(x_t), timestep=t / 1000, guidance=guidance, **cond,
            txt_ids=torch.zeros(words, 3, device=x_t.device),
            img_ids=places(height // PATCH, width // PATCH, x_t.device), return_dict=False,
        )[0]  # fmt: skip
        return unpack(output, height, width)

    def arrange(self, noise: Tensor) -> Tensor:
        """The scheduler's state is packed, so the numbers it draws fill token after token."""
        rows, channels, height, width = noise.shape
        return unpack(noise.reshape(rows, height * width // PATCH**2, channels * PATCH**2), height, width)

    def shift(self, _steps: int = 1) -> float:
        """exp(mu), mu linear in the number of tokens, where the scheduler shifts by the size of the image."""
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        tokens = math.prod(side // self.size_multiple for side in self.sides)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return math.exp(config.base_shift + slope * (tokens - config.base_image_seq_len))

    def default_sigmas(self, steps: int) -> list[float] | None:
        return [1 - k / steps for k in range(steps)]


ADAPTER = AdapterFor("FluxPipeline", Flux)


def pack(x: Tensor) -> Tensor:
    """`(B, C, h, w)` -> `(B, h w / 4, 4 C)`: a token for each 2x2 latents, channel by channel."""
    rows, channels, height, width = x.shape
    patches = x.reshape(rows, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    rows, _, size = tokens.shape
    channels = size // PATCH**2
    patches = tokens.reshape(rows, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """`(0, row, column)` of every token, `(h w, 3)`, for its rotary embedding."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1).float()
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)
