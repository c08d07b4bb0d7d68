"""What a run looks at between updates: fixed-seed grids and metrics of the averaged model."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.config.schema import Distill, Run
from diffdistill.data import ImageSet, load_images
from diffdistill.data.prompts import read_prompts, spread
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.evaluation import Evaluator
from diffdistill.evaluation.text_evaluator import TextEvaluator
from diffdistill.evaluation.text_scores import by_name
from diffdistill.pipelines.text.data import TextSet
from diffdistill.reporting.grid import image_grid
from diffdistill.rewards import load_reward
from diffdistill.sampling.generate import generate, pick_device
from diffdistill.training.early_stop import check_watched

GRID_ROWS, GRID_COLUMNS = 8, 10
# Of texts: a column a prompt; as many images as 32 of 64x64 pixels take time, and one at least.
TEXT_ROWS, TEXT_COLUMNS, TEXT_PIXELS = 4, 8, 32 * 64 * 64


class RunObserver:
    """Samples with fixed seeds, so that two grids of a run differ only by the weights."""

    def __init__(self, config: Run, data: ImageSet):
        self.config = config
        self.data = data
        if config.evaluation.every or config.evaluation.at_end:
            self.evaluator  # noqa: B018  # what is absent is told of before training

    def grid(self, model: Denoiser, file: Path) -> None:
        columns = min(model.num_classes or GRID_COLUMNS, GRID_COLUMNS)
        count = GRID_ROWS * columns
        write_grid(file, generate(model, num_images=count, batch_size=count), columns)

    def evaluate(self, model: Denoiser) -> dict[str, Any]:
        settings = self.config.evaluation
        return self.evaluator(
            generate(
                model,
                num_images=settings.num_images,
                seed=settings.seed,
                batch_size=settings.batch_size,
                steps=settings.steps,
            )
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        settings = self.config.evaluation
        reference = self.data
        if settings.reference is not None:
            split = settings.reference_split or self.config.data.split
            channels, _, size = self.data.images.shape[1:]
            reference = load_images(settings.reference, split=split, image_size=size, channels=channels)
        return Evaluator(reference, settings.features, settings.metrics, device=pick_device(None))


class TextObserver:
    """The same of a text-to-image model: grids of the first prompts, metrics of images of evenly spaced ones."""

    def __init__(self, config: Distill, data: TextSet):
        self.config, self.data = config, data
        settings = config.evaluation
        self.rewards = [load_reward(name) for name in settings.rewards]
        if settings.every or settings.at_end:
            self.evaluator  # noqa: B018  # what is absent is told of before training
            self.prompts = self._prompts()
        check_watched(settings.stop, by_name(self.rewards))

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
        prompts = list(dict.fromkeys(model.captions(self.data.ids[:1000]) or []))[: min(count, TEXT_COLUMNS)]
        count = max(1, count // len(prompts)) * len(prompts)
        images = self._images(model, prompts, count, seed=0, batch_size=count)
        write_grid(file, images, len(prompts), [prompts[i % len(prompts)] for i in range(count)])

    def evaluate(self, model: Denoiser) -> dict[str, Any]:
        settings = self.config.evaluation
        prompts = spread(self.prompts or model.captions(self.data.ids) or [], settings.num_images)
        return self.evaluator(
            self._images(model, prompts, settings.num_images, settings.seed, settings.batch_size, settings.steps),
            texts=prompts,
        )

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
        return load_images(settings.reference, split=split, image_size=size, channels=3)

    @cached_property
    def evaluator(self) -> Evaluator | TextEvaluator:
        settings, device = self.config.evaluation, pick_device(None)
        texts: dict[str, Any] = {"clip_model": settings.clip, "rewards": self.rewards, "device": device}
        if self.reference is None or not settings.metrics:
            return TextEvaluator(settings.metrics, **texts)
        return Evaluator(self.reference, settings.features, settings.metrics, **texts)


def observer_of(config: Run, data: ImageSet | TextSet) -> RunObserver | TextObserver:
    if isinstance(data, TextSet):
        assert isinstance(config, Distill)
        return TextObserver(config, data)
    settings = config.evaluation
    if "clip" in settings.metrics or settings.rewards or settings.prompts is not None:
        raise ConfigError(
            "evaluation.metrics=clip, evaluation.rewards and evaluation.prompts are of models that draw texts, and "
            "this one draws none; leave them out"
        )
    return RunObserver(config, data)


def write_grid(
    file: Path,
    batches: Iterator[tuple[Tensor, Tensor | None]],
    columns: int,
    captions: Sequence[str] | None = None,
) -> None:
    images = torch.cat([batch for batch, _ in batches])
    file.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns, captions).save(file)
