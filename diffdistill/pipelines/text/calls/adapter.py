"""The adapter of a pipeline that has none: its call is read off it, once for each size of image, and replayed."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from diffdistill.data import to_model_range
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.calls.check import check
from diffdistill.pipelines.text.calls.gather import Unreadable
from diffdistill.pipelines.text.calls.guidance import lengthened
from diffdistill.pipelines.text.calls.leaves import Leaves, leaves, name_of, nested, row, together
from diffdistill.pipelines.text.calls.reading import Reading, map_of, read
from diffdistill.pipelines.text.calls.stage import SHORT, Stage
from diffdistill.pipelines.text.calls.watch import Wish, quiet
from diffdistill.pipelines.text.kept import Condition, Kept, Prompt
from diffdistill.pipelines.text.latents import Pixels, cast_frozen
from diffdistill.pipelines.text.texts import Cutting, Size
from diffdistill.precision import OWN, Precision, dtype_of

PARTS = ("transformer", "unet")
NO_VARIANCE = -30.0  # as a logarithm


class ReadOff(Adapter):
    """A pipeline whose call was read off itself; for classes without an adapter.

    Latents are the pipeline's noise as it draws it. Everything is read when it is first needed, at the size of image
    that is set then, and again at another: the pipeline runs a few times with stand-ins for its network's outputs,
    and twice for real, once to see what its network returns and once to check that the replay draws its images.
    Raises ConfigError where it cannot be read, or does not.
    """

    reads_itself = True

    def __init__(self, pipeline: Any, source: Folder):
        self.part = next(part for part in PARTS if getattr(pipeline, part, None) is not None)
        super(Adapter, self).__init__(pipeline)
        self.source = source
        self._sides: tuple[int, int] | None = None
        self._reading: Reading | None = None
        self._held = "float32"
        self._times: dict[int, dict[str, Any]] = {}

    def hold(self, precision: Precision) -> None:
        """As in the base class, all parts; read off before, at the size of image that is set."""
        if precision == Precision() or precision.network == OWN:
            return
        self.reading  # noqa: B018
        self._held = precision.network
        super().hold(precision)
        for name, part in self.frozen.items():
            cast_frozen(name, part, precision)

    @classmethod
    def why_not(cls, pipeline: Any) -> str | None:
        """Why a pipeline class of diffusers cannot be read off, as far as its signatures tell; None: it may be."""
        made, called = (set(inspect.signature(f).parameters) for f in (pipeline.__init__, pipeline.__call__))
        networks = [part for part in made if part.startswith(PARTS) or part.startswith(("prior", "decoder"))]
        if len(networks) != 1 or networks[0] not in PARTS:
            return "it has not one network, a transformer or unet"
        if lacking := [part for part in ("vae", "scheduler") if part not in made]:
            return f"it has no {lacking[0]}"
        if "num_frames" in called or "prompt" not in called:
            return "it does not draw an image from a prompt"
        return None

    @property
    def sides(self) -> tuple[int, int]:
        if self._sides is None:
            self._sides = (self.native_size(),) * 2
        return self._sides

    @sides.setter
    def sides(self, sides: tuple[int, int]) -> None:
        if sides != self._sides:
            # What was read, and every text, may be of another shape at another size.
            self._sides, self._reading, self._times = sides, None, {}
            self.kept, self.there = Kept(self.kept.limit), Kept(self.there.limit)

    @property
    def reading(self) -> Reading:
        if self._reading is None:
            if self._held != "float32":
                raise ConfigError(
                    f"'{self.source}' is read off again at another size, which takes float32, and it is held in "
                    f"{self._held}; load it in float32"
                )
            self.wake()
            try:
                with quiet():
                    self._reading = read(self.pipeline, self.part, self.sides)
                    check(self, self._reading)
            except Unreadable as problem:
                self._reading = None
                raise self._refusal(problem) from problem
        return self._reading

    def _refusal(self, problem: Unreadable) -> ConfigError:
        at = "its own size" if self._sides is None else f"{self._sides[1]}x{self._sides[0]} pixels"
        return ConfigError(
            f"'{self.source}' is a {type(self.pipeline).__name__}, which has no adapter, and its call cannot be read "
            f"off at {at}: {problem}; write an AdapterFor (docs/extend.md)"
        )

    def native_size(self) -> int:
        """Of the images that the pipeline draws where it is told no size."""
        self.wake()
        try:
            with quiet():
                own = self._drawn(None)
                factors = {self.size_multiple, self.pipeline.vae_scale_factor, 8, 16, 32}
                for factor in sorted(factors):
                    if self._drawn(own[-1] * factor) == own:
                        return own[-1] * factor
        except Unreadable as problem:
            raise self._refusal(problem) from problem
        raise self._refusal(Unreadable(f"the size of the images that it draws from noise of {own} is not found"))

    def _drawn(self, size: int | None) -> tuple[int, int, int]:
        sides = None if size is None else (size, size)
        return map_of(Stage(self.pipeline, self.part, sides).watch([SHORT], Wish(until="drawn")).drawn)

    @property
    def size_multiple(self) -> int:
        processor = getattr(self.pipeline, "image_processor", None)
        return int(processor.config.vae_scale_factor if processor is not None else self.pipeline.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.reading.shape

    @property
    def embeds_guidance(self) -> bool:
        return self.reading.guidance.kind != "two"

    @property
    def default_guidance(self) -> float:
        guidance = self.reading.guidance
        own = self.reading.stage.parameters[guidance.name].default if guidance.name else None
        return 1.0 if own is None else float(own) + guidance.extra

    def text(self, prompt: str) -> Condition:
        found = self.reading.stage.asked(prompt)
        return {name_of(path): row(found[path], 0) for path in self.reading.text}

    def null(self) -> Condition:
        return self._away(None)

    def away(self, negative: str) -> Condition:
        """As the pipeline encodes it; as a prompt where it takes none (Flux.2 klein)."""
        taken = "negative_prompt" in self.reading.stage.parameters
        return self._away(negative) if taken else self.text(negative)

    def _away(self, negative: str | None) -> Condition:
        """What a guided call tells its network in the null row: of a negative prompt, or of none."""
        reading = self.reading
        guidance, stage = reading.guidance, reading.stage
        if guidance.kind != "two":
            return self.text("")
        zeros = stage.outputs(lambda rows: torch.zeros(rows, *stage.output_shape).to(self.device))
        seen = stage.watch([SHORT], Wish(output=zeros, until="stepped"), **guidance.arguments(2.0, 1, negative))
        found = guidance.null_row(seen.steps[0].calls, stage.state)
        return {name_of(path): found[path] for path in reading.text}

    def joined(
        self, prompts: Sequence[Prompt], sizes: Sequence[Size] | None = None, dtype: torch.dtype | None = None
    ) -> Condition:
        """The network's arguments but the state, the time and the scale of guidance; `sizes` must be None."""
        reading = self.reading
        texts = self.on_device(prompts, dtype)
        found: Leaves = {path: self._moved(value) for path, value in reading.fixed.items()}
        for path, one in reading.repeated.items():
            found[path] = together([self._moved(one)] * len(prompts), path in reading.listed)
        for path in reading.text:
            rows = [text[name_of(path)] for text in texts]
            found[path] = together(rows, path in reading.listed)
            if path in reading.ragged:
                found |= self._ends([one.shape[1] for one in rows])
        return nested(found)

    def _ends(self, lengths: list[int]) -> Leaves:
        """Marks of where texts end, if they are not equally long."""
        if len(set(lengths)) == 1:
            return {}
        ends = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return {path: ends.to(self.device, dtype) for path, dtype in self.reading.masks.items()}

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        reading = self.reading
        state = reading.into(x_t)
        listed = reading.stage.state_listed
        found = leaves(cond) | {reading.stage.state: list(state) if listed else state}
        found |= {path: t * factor + offset for path, (factor, offset) in reading.times.items()}
        told = reading.guidance
        if told.kind == "told":
            scale = told.factor * self.guidance + told.offset
            found[told.told] = torch.full((len(x_t),), scale, device=x_t.device)
        output = network(**nested(found))[0]
        return reading.outof(torch.stack(output) if isinstance(output, list) else output)

    @property
    def changes_guided(self) -> bool:  # type: ignore[override]
        return self.reading.guidance.kept

    def guided(self, mixed: Tensor, cond: Tensor) -> Tensor:
        return lengthened(mixed, cond, self.reading.place)

    def arrange(self, noise: Tensor) -> Tensor:
        place = self.reading.place
        return place.inverse()(noise.reshape(len(noise), *place.shape))

    def feature(self, output: Any) -> Tensor:
        """Maps as they are; tokens of the image, which come last where a text's do, too, as a map."""
        outputs = [
            value for value in (output if isinstance(output, tuple) else (output,)) if isinstance(value, Tensor)
        ]
        if outputs and outputs[0].dim() == 4:
            return outputs[0]
        _, height, width = self.latent_shape
        patch = getattr(self.network.config, "patch_size", 1)
        side = math.isqrt(height * width // self.reading.tokens) if self.reading.tokens else patch
        grid = height // side, width // side
        for tokens in reversed(outputs):
            if tokens.dim() == 3 and tokens.shape[1] == grid[0] * grid[1]:
                return tokens.transpose(1, 2).unflatten(2, grid)
        raise ConfigError(
            f"a layer of adversarial.taps returns no {grid[0]} x {grid[1]} tokens of the image; name another layer of "
            f"the {self.part}"
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The inverse of what the pipeline does before its VAE decodes, of the VAE's mean latents; one at a time."""
        back = self.reading.decoded.inverse()
        self.wake("vae")
        video = len(self.reading.decoded.shape) == 4
        rows = []
        for image in images.to(self.device).split(1):
            image = image.to(dtype_of(self.pipeline.vae))
            found = self.pipeline.vae.encode(image.unsqueeze(2) if video else image)
            rows.append(back((found.latent if hasattr(found, "latent") else found.latent_dist.mode()).float()))
        return torch.cat(rows)

    def moments(self, pictures: Sequence[Pixels]) -> Tensor:
        """The mean latents of `encode`, without a variance: what it is in the pipeline's own units is not read."""
        mean = torch.cat([self.encode(to_model_range(picture.pixels[None])) for picture in pictures])
        return torch.cat([mean, torch.full_like(mean, NO_VARIANCE)], 1)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean, whatever the noise."""
        return moments.chunk(2, 1)[0]

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Cutting]) -> Condition:
        return self.joined(prompts)

    def decode(self, latents: Tensor) -> Tensor:
        self.wake("vae")
        raw = self.reading.decoded(latents.to(self.device).float()).to(dtype_of(self.pipeline.vae))
        image = self.pipeline.vae.decode(raw, return_dict=False)[0].float()
        return image.squeeze(2) if image.dim() == 5 else image

    def student_call(self) -> dict[str, Any]:
        reading = self.reading
        scale = {reading.guidance.name: self.guidance} if reading.guidance.kind == "told" else reading.stage.off
        binning = {"use_resolution_binning": False} if "use_resolution_binning" in reading.stage.parameters else {}
        return {**scale, "height": self.sides[0], "width": self.sides[1], **binning}

    def _scheduled(self, steps: int) -> dict[str, Any]:
        """What the pipeline tells its scheduler for so many steps."""
        if steps not in self._times:
            self.wake()
            try:
                self._times[steps] = self.reading.stage.watch([SHORT], Wish(until="asked"), steps).times
            except Unreadable as problem:
                raise self._refusal(problem) from problem
        return self._times[steps]

    def shift(self, steps: int = 1) -> float:
        config, mu = self.scheduler.config, self._scheduled(steps).get("mu")
        if mu is None or not config.get("use_dynamic_shifting"):
            return float(config.get("shift", 1.0))
        return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)

    def default_sigmas(self, steps: int) -> list[float] | None:
        sigmas = self._scheduled(steps).get("sigmas")
        return None if sigmas is None else [float(sigma) for sigma in sigmas]
