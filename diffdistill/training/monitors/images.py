"""A model of images in a run: fixed-seed grids and metrics."""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from diffdistill.config.schema import Distill, Evaluation, Train
from diffdistill.data import ImageSet, load_images
from diffdistill.denoiser import Denoiser
from diffdistill.devices import pick_device
from diffdistill.errors import ConfigError, FeaturesMissing
from diffdistill.evaluation import Evaluator
from diffdistill.evaluation.metrics import metric
from diffdistill.evaluation.subjects import unshown
from diffdistill.files import replacing
from diffdistill.reporting.grid import image_grid
from diffdistill.sampling.generate import generate
from diffdistill.training.batches import by_name

GRID_ROWS, GRID_COLUMNS = 8, 10


class ImageMonitor:
    """Samples with fixed seeds, so that two grids of a run differ only by the weights."""

    scores: tuple[str, ...] = ()

    def __init__(self, config: Train | Distill, data: ImageSet, teacher: Denoiser | None = None):
        settings = config.evaluation
        of_texts = [name for name in settings.metrics if "texts" in metric(name).needs]
        if of_texts or settings.rewards or settings.prompts is not None:
            raise ConfigError(
                f"evaluation.metrics={of_texts[0] if of_texts else 'clip'}, evaluation.rewards and evaluation.prompts "
                "are of models that draw texts, and this one draws none; leave them out"
            )
        self.config, self.data, self.teacher = config, data, teacher
        check_classes(config.sample_classes, data)
        if config.evaluation.every or config.evaluation.at_end:
            self.evaluator  # noqa: B018  # made now: a reference or features that are absent are an error of the start

    def begin(self, folder: Path) -> None:
        if self.teacher is not None and self.config.sample_every:
            self.grid(self.teacher, folder / "samples" / "teacher.png")

    def grid(self, model: Denoiser, file: Path) -> None:
        chosen = self.config.sample_classes
        columns = min(model.num_classes or GRID_COLUMNS, GRID_COLUMNS) if chosen is None else len(chosen)
        count = GRID_ROWS * columns
        write_grid(file, generate(model, num_images=count, batch_size=count, class_labels=chosen), columns)

    def evaluate(self, model: Denoiser) -> dict[str, Any]:
        settings = self.config.evaluation
        if self.evaluator is None:
            return {}
        result = self.evaluator(
            generate(
                model,
                num_images=settings.num_images,
                seed=settings.seed,
                batch_size=settings.batch_size,
                steps=settings.steps,
            )
        )
        classes = None if model.num_classes is None else range(model.num_classes)
        result["warnings"] = [*unshown(settings.num_images, classes), *result["warnings"]]
        return result

    @cached_property
    def evaluator(self) -> Evaluator | None:
        settings = self.config.evaluation
        reference = self.data
        if settings.reference is not None:
            split = settings.reference_split or self.config.data.split
            channels, _, size = self.data.images.shape[1:]
            data = self.config.data
            reference = load_images(
                settings.reference, split=split, image_size=size, channels=channels,
                keep=data.keep, workers=data.workers, disk_gb=data.disk_cache_gb,
            )  # fmt: skip
            if any("labels" in metric(name).needs for name in settings.metrics):
                reference = by_name(reference, self.data.class_names, whose="model")
        return evaluator_of(settings, reference, self.config.compares)


def check_classes(chosen: Sequence[int] | None, data: ImageSet) -> None:
    """ConfigError for classes of the grids that the data do not have."""
    count = data.num_classes
    wrong = [label for label in chosen or () if count is None or label >= count]
    if wrong:
        known = "there are no classes" if count is None else f"there are classes 0 to {count - 1}"
        raise ConfigError(f"sample_classes has {wrong[0]}, and {known} in the data; leave it out, or change it")


def evaluator_of(settings: Evaluation, reference: ImageSet | None, needed: bool, **more: Any) -> Evaluator | None:
    """What measures a run, its warnings said before the run begins: they will be true of every figure of it.

    Where nothing was said of features and those that fit the pictures are not on this machine, what looks at none is
    measured, perhaps nothing (None), and that is said; FeaturesMissing where the run is `needed` to be measured.
    """
    more |= {"device": pick_device(None)}
    evaluator: Evaluator | None
    try:
        evaluator = Evaluator(reference, settings.features, settings.metrics, **more)
    except FeaturesMissing as error:
        if needed:
            raise
        rest = [name for name in settings.metrics if not metric(name).looks_at_features]
        left_out = ", ".join(name for name in settings.metrics if name not in rest)
        print(f"warning: {left_out} will not be measured: {error}", file=sys.stderr)
        evaluator = Evaluator(reference, None, rest, **more) if rest or more.get("rewards") else None
    for warning in () if evaluator is None else evaluator.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return evaluator


def write_grid(
    file: Path,
    batches: Iterator[tuple[Tensor, Tensor | None]],
    columns: int,
    captions: Sequence[str] | None = None,
) -> None:
    images = torch.cat([batch for batch, _ in batches])
    save_picture(image_grid(images, columns, captions), file)


def save_picture(picture: Image, file: Path) -> None:
    """A PNG, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        picture.save(partial)
