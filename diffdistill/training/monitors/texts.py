"""A text-to-image model in a run: grids of the first prompts, metrics of images of evenly spaced ones."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet, load_images
from diffdistill.data.prompts import read_prompts, spread
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import Evaluator
from diffdistill.evaluation.text_scores import by_name
from diffdistill.pipelines.text.data import TextSet
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.rewards import load_reward
from diffdistill.sampling.generate import generate
from diffdistill.training.monitors.images import evaluator_of, write_grid

# A column a prompt; as many images as 32 of 64x64 pixels take time, and one at least.
TEXT_ROWS, TEXT_COLUMNS, TEXT_PIXELS = 4, 8, 32 * 64 * 64


class TextMonitor:
    """Grids of the first prompts, metrics of images of evenly spaced ones."""

    def __init__(self, config: Distill, data: TextSet, teacher: Denoiser | None = None):
        self.config, self.data, self.teacher = config, data, teacher
        settings = config.evaluation
        self.rewards = [load_reward(name) for name in settings.rewards]
        self.scores = tuple(by_name(self.rewards))
        if settings.every or settings.at_end:
            self.evaluator  # noqa: B018  # made now: a reference or weights that are absent are an error of the start
            self.prompts = self._prompts()

    def begin(self, folder: Path) -> None:
        if self.teacher is not None and self.config.sample_every:
            self.grid(self.teacher, folder / "samples" / "teacher.png")

    def _prompts(self) -> Sequence[str] | None:
        """What evaluations draw: the prompts asked for, else the captions of another reference; None: of training."""
        settings = self.config.evaluation
        if settings.prompts is not None:
            return [prompt.text for prompt in read_prompts(settings.prompts)]
        other = None if settings.reference is None else self.reference
        return None if other is None else other.texts

    def grid(self, model: Denoiser, file: Path) -> None:
        """A column a prompt, a row a seed; the teacher's with its guidance."""
        count = max(1, min(TEXT_ROWS * TEXT_COLUMNS, TEXT_PIXELS // (model.picture_shape[1] * model.picture_shape[2])))
        first = list(dict.fromkeys(model.captions(self.data.ids[:1000]) or []))[: min(count, TEXT_COLUMNS)]
        prompts = list(self.config.sample_prompts or first)
        count = max(1, count // len(prompts)) * len(prompts)
        images = self._images(model, prompts, count, seed=0, batch_size=count)
        write_grid(file, images, len(prompts), [prompts[i % len(prompts)] for i in range(count)])
        _rest(model)

    def evaluate(self, model: Denoiser) -> dict[str, Any]:
        settings = self.config.evaluation
        if self.evaluator is None:
            return {}
        prompts = spread(self.prompts or model.captions(self.data.ids) or [], settings.num_images)
        result = self.evaluator(
            self._images(model, prompts, settings.num_images, settings.seed, settings.batch_size, settings.steps),
            texts=prompts,
        )
        _rest(model)
        return result

    def _images(
        self,
        model: Denoiser,
        prompts: Sequence[str],
        count: int,
        seed: int,
        batch_size: int,
        steps: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        guidance = None if model.role == "student" else self.config.method.guidance_scale
        return generate(
            model, prompts=prompts, num_images=count, seed=seed, batch_size=batch_size, steps=steps,
            guidance_scale=guidance,
        )  # fmt: skip

    @cached_property
    def reference(self) -> ImageSet | None:
        """Images to compare with; None for prompts alone, which are measured by what needs none."""
        settings, images = self.config.evaluation, self.data.images
        if settings.reference is None:
            return images
        split = settings.reference_split or self.config.data.split
        size = self.config.data.image_size or (images.images.shape[-1] if images is not None else None)
        data = self.config.data
        return load_images(
            settings.reference, split=split, image_size=size, channels=3,
            keep=data.keep, workers=data.workers, disk_gb=data.disk_cache_gb,
        )  # fmt: skip

    @cached_property
    def evaluator(self) -> Evaluator | None:
        settings = self.config.evaluation
        compares = self.config.compares
        return evaluator_of(settings, self.reference, compares, clip_model=settings.clip, rewards=self.rewards)


def _rest(model: Denoiser) -> None:
    """Text encoders and VAE leave the device: a look is over, and steps have their texts encoded."""
    if isinstance(model, TextDenoiser):
        model.adapter.rest()
