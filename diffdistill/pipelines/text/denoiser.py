"""A text-to-image pipeline seen as a denoiser of latents: `D(x_t, sigma, prompt ids) -> x0`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.denoiser import Condition, Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.adapter import Adapter, load_adapter
from diffdistill.pipelines.text.conditions import PromptConditions, prompt_conditions
from diffdistill.pipelines.text.prompts import PromptTable
from diffdistill.pipelines.text.save import save_text
from diffdistill.pipelines.text.schedule import pipeline_levels
from diffdistill.precision import Precision, dtype_of, name_of
from diffdistill.process import Flow, Process
from diffdistill.request import SamplingRequest

# Of latents so many places go through the network at a time: 16 images of 8x8 to 16x16 or one of 64x64 on a CPU, which
# the large ones keep busy alone; 32 of 64x64 or 8 of 128x128 on an accelerator, whose memory they fill.
LATENT_PLACES = {"cpu": 1 << 12, "other": 1 << 17}
# A decoder's activations take some 10 kB a pixel: one image of 512x512 at a time on a CPU, four on an accelerator.
DECODED_PIXELS = {"cpu": 1 << 16, "other": 1 << 20}
# Above, Karras' levels waste most steps on pure noise: the schedule has (nearly) no signal at its end.
LEVEL_WITHOUT_SIGNAL = 1000.0


class TextDenoiser(Denoiser):
    """`D(x_t, sigma, cond) -> x0` of scaled latents; `cond` are int64 `(B,)` rows of the `PromptTable` `prompts`.

    x_t: `(B, C, h, w)` = x0 + sigma * eps, x0 = (VAE's latent - shift) * scale, of variance near 1. Teacher, student
    and critic of a run share one adapter and one table, and have a network each. `null_class` is the row of the null
    prompt of guidance: 0, the pipeline's own; for a negative prompt, `model.null_class =
    int(prompts.ids([text], negative=True)[0])`.
    """

    draws_texts = True

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
        return 3, *self.adapter.sides

    @contextmanager
    def at_size(self, size: tuple[int, int] | None) -> Iterator[None]:
        """Within, it draws images of this width and height; ConfigError for sides that its latents cannot have."""
        before, most = self.adapter.sides, self.adapter.size_multiple
        if size is not None:
            near = "x".join(str(max(1, round(side / most)) * most) for side in size)
            if any(side < 1 or side % most for side in size):
                raise ConfigError(f"size is {size[0]}x{size[1]}, and sides are multiples of {most} here; give {near}")
            self.adapter.sides = size[1], size[0]
        try:
            yield
        finally:
            if size is not None:
                self.adapter.sides = before

    @property
    def num_classes(self) -> int | None:
        return None

    @property
    def dtypes(self) -> dict[str, str]:
        return super().dtypes | {"vae_dtype": name_of(dtype_of(self.adapter.pipeline.vae))}

    def example_condition(self, count: int, device: torch.device) -> Tensor | None:
        return torch.full((count,), self.prompts.null, dtype=torch.int64)

    def placed(self, cond: Tensor | None) -> Tensor | None:
        """As they are: numbers of prompts are looked up by the host, who would wait for those of a device."""
        return cond

    def captions(self, cond: Tensor | None) -> list[str] | None:
        return None if cond is None else self.prompts.texts(cond)

    @property
    def default_sampler(self) -> str:
        """Guidance doubles every call, so one call a step."""
        if self.role == "student":
            return "consistency"
        if isinstance(self.process, Flow):
            return "flow_euler"
        return "deis" if self.sigma_max > LEVEL_WITHOUT_SIGNAL else "dpm_solver"

    @property
    def default_guidance(self) -> float:
        """What diffdistill.json names, else the default of the call of the stock pipeline."""
        named = self.metadata.get("guidance_scale")
        return self.adapter.default_guidance if named is None else float(named)

    def conditions_for(self, request: SamplingRequest) -> PromptConditions:
        return prompt_conditions(
            request,
            default_guidance=self.default_guidance,
            embeds_guidance=self.adapter.embeds_guidance,
            student=self.role == "student",
        )

    def start_scale(self, sigma: float) -> float:
        """Stock pipelines show the network z, of variance 1."""
        return self.process.start_scale(sigma) / sigma

    def network_rows(self, device: torch.device) -> int:
        return _fitting(LATENT_PLACES, device, self.image_shape)

    def decoder_rows(self, device: torch.device) -> int:
        return _fitting(DECODED_PIXELS, device, self.picture_shape)

    def pipeline_levels(self, sampler: str, steps: int) -> tuple[float, ...] | None:
        """Of a flow's Euler: shifted to this size of image."""
        if sampler != "flow_euler" or not isinstance(self.process, Flow):
            return None
        return pipeline_levels(self.adapter, self.process, steps)

    @property
    def few_step_settings(self) -> dict[str, Any]:
        """Latents have no bounds, and the pipeline may draw noise in an order of its own."""
        return {"clip": False, "arrange": self.adapter.arrange}

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
        only_taps: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """As in the base class; a guidance-distilled network gets the scale as an input, left as it is for scale 1."""
        adapter = self.adapter
        if not adapter.embeds_guidance or guidance_scale == 1.0:
            return super().guided_tapped(x_t, sigma, cond, guidance_scale, taps, null, only_taps)
        before, adapter.guidance = adapter.guidance, guidance_scale
        try:
            return self.tapped(x_t, sigma, cond, taps, only_taps)
        finally:
            adapter.guidance = before

    def mixed(self, without: Tensor, with_cond: Tensor, guidance_scale: float, x_t: Tensor, sigma: Tensor) -> Tensor:
        """As in the base class; some pipelines then change the length of the guided output of the network."""
        plainly = super().mixed(without, with_cond, guidance_scale, x_t, sigma)
        if not self.adapter.changes_guided:
            return plainly
        guided, cond = (self.process.from_x0(value, x_t.float(), sigma.float()) for value in (plainly, with_cond))
        return self.process.to_x0(self.adapter.guided(guided, cond), x_t.float(), sigma.float())

    def to(self, *args: Any, **kwargs: Any) -> "TextDenoiser":
        super().to(*args, **kwargs)
        self.adapter.place(next(self.network.parameters()).device)
        return self

    def _call(self, x_in: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, Tensor):
            raise ConfigError("a text-to-image model needs prompts; give their numbers, model.prompts.ids(texts)")
        dtype = dtype_of(self.layers)
        output = self.adapter.predict(self.network, x_in.to(dtype), time, self.prompts.arguments(cond, dtype))
        # Networks with learned variance append it as further channels.
        return output[:, : x_in.shape[1]]

    @property
    def example_pass(self) -> Callable[[], Tensor]:
        """The raw output of the network for one latent of noise and the null prompt."""
        return self._example_pass

    @torch.no_grad()
    def _example_pass(self) -> Tensor:
        device = self.device
        x = torch.randn(1, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        cond = self.example_condition(1, device)
        return self._call(x, torch.full((1,), 500.0, device=device), cond)

    def save_pretrained(
        self, folder: str | Path, *, role: str, levels: Sequence[float] = (), **provenance: Any
    ) -> None:
        """Write a folder that stock diffusers samples: the teacher's pipeline with this network and a scheduler."""
        save_text(self, self.adapter, Path(folder), role=role, levels=levels, **provenance)


def _fitting(budget: dict[str, int], device: torch.device, shape: tuple[int, int, int]) -> int:
    """How many images of this shape, `(C, h, w)`, fit into the budget of places of a device."""
    return max(1, budget.get(device.type, budget["other"]) // (shape[1] * shape[2]))


def load_text_denoiser(
    folder: Path, name: str, model: str, process: Process, metadata: dict[str, Any], adapter_name: str | None = None,
    precision: Precision | None = None,
) -> TextDenoiser:  # fmt: skip
    """The pipeline of class `name` in `folder`; arguments and errors as of `load_adapter`."""
    adapter, call = load_adapter(folder, name, model, adapter_name, precision), metadata.get("call", {})
    # What the student was trained with, beside its levels.
    adapter.sides = call.get("height", adapter.sides[0]), call.get("width", adapter.sides[1])
    adapter.guidance = call.get("guidance_scale", adapter.guidance)
    adapter.hold(precision or Precision())
    return TextDenoiser(adapter, process, metadata=metadata).eval()
