"""A text-to-image pipeline seen as a denoiser of latents: `D(x_t, sigma, prompt ids) -> x0`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.denoiser import Condition, Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.adapters import Adapter, load_adapter
from diffdistill.pipelines.text.prompts import PromptTable
from diffdistill.process import Process


class TextDenoiser(Denoiser):
    """`D(x_t, sigma, cond) -> x0` of scaled latents; `cond` are int64 `(B,)` rows of the `PromptTable` `prompts`.

    x_t: `(B, C, h, w)` = x0 + sigma * eps, x0 = (VAE's latent - shift) * scale, of variance near 1. Teacher, student
    and critic of a run are one adapter and one table, and a network each. `null_class` is the row that guidance sets a
    prompt against: 0, the pipeline's own; for a negative prompt, `model.null_class = int(prompts.ids([text])[0])`.
    """

    def __init__(
        self,
        adapter: Adapter,
        process: Process,
        *,
        network: nn.Module | None = None,
        prompts: PromptTable | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__(
            adapter.network if network is None else network, process, null_class=PromptTable.null, metadata=metadata
        )
        self.adapter: Adapter = adapter
        self.prompts: PromptTable = prompts or PromptTable(adapter)

    def with_network(self, network: nn.Module, metadata: dict[str, Any] | None = None) -> "TextDenoiser":
        """Another network in the same pipeline: a student, a critic."""
        return TextDenoiser(self.adapter, self.process, network=network, prompts=self.prompts, metadata=metadata)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.adapter.latent_shape

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        return 3, self.adapter.image_size, self.adapter.image_size

    @property
    def num_classes(self) -> int | None:
        return None

    def example_condition(self, count: int, device: torch.device) -> Tensor | None:
        return torch.full((count,), self.prompts.null, dtype=torch.int64, device=device)

    def encode(self, images: Tensor) -> Tensor:
        """The mean latents `(B, C, h, w)` of images `(B, 3, H, W)` in [-1, 1]; no gradient."""
        return self.adapter.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [-1, 1], not clamped; differentiable."""
        return self.adapter.decode(latents)

    def clip(self, x0: Tensor) -> Tensor:
        """Latents have no bounds."""
        return x0

    def feature(self, output: Any) -> Tensor:
        return self.adapter.feature(output)

    def guided_tapped(
        self,
        x_t: Tensor,
        sigma: Tensor,
        cond: Tensor | None,
        guidance_scale: float,
        taps: Sequence[str],
        null: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """As the base has it; a guidance-distilled network is told the scale instead (1: what it is told anyway)."""
        adapter = self.adapter
        if not adapter.embeds_guidance or guidance_scale == 1.0:
            return super().guided_tapped(x_t, sigma, cond, guidance_scale, taps, null)
        before, adapter.guidance = adapter.guidance, guidance_scale
        try:
            return self.tapped(x_t, sigma, cond, taps)
        finally:
            adapter.guidance = before

    def to(self, *args: Any, **kwargs: Any) -> "TextDenoiser":
        super().to(*args, **kwargs)
        self.adapter.place(next(self.network.parameters()).device)
        return self

    def _call(self, x_in: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, Tensor):
            raise ConfigError("a text-to-image model needs prompts; give their numbers, model.prompts.ids(texts)")
        dtype = next(self.layers.parameters()).dtype
        output = self.adapter.predict(self.network, x_in.to(dtype), time, self.prompts.arguments(cond, dtype))
        # Networks with learned variance append it as further channels.
        return output[:, : x_in.shape[1]]

    @torch.no_grad()
    def example_pass(self) -> Tensor:
        """The raw output of the network for one latent of noise and the null prompt: to see what runs."""
        device = next(self.layers.parameters()).device
        x = torch.randn(1, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        cond = self.example_condition(1, device)
        return self._call(x, torch.full((1,), 500.0, device=device), cond)

    def save_pretrained(
        self, folder: str | Path, *, role: str, levels: Sequence[float] = (), **provenance: Any
    ) -> None:
        """Write a folder that stock diffusers samples: the teacher's pipeline with this network and a scheduler."""
        from diffdistill.pipelines.text.student import save_text_denoiser

        save_text_denoiser(self, Path(folder), role=role, levels=levels, **provenance)


def load_text_denoiser(
    folder: Path, name: str, model: str, process: Process, metadata: dict[str, Any]
) -> TextDenoiser:
    """The pipeline of class `name` in `folder`; raises what `load_adapter` raises."""
    adapter, call = load_adapter(folder, name, model), metadata.get("call", {})
    # What the student was trained with, beside its levels.
    adapter.image_size = call.get("height", adapter.image_size)
    adapter.guidance = call.get("guidance_scale", adapter.guidance)
    return TextDenoiser(adapter, process, metadata=metadata).eval()
