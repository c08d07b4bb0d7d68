"""What a run looks at between updates: fixed-seed grids and metrics of the averaged model."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from diffdistill.config.schema import Run
from diffdistill.data import ImageSet, load_images
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import Evaluator
from diffdistill.reporting.grid import image_grid
from diffdistill.sampling.generate import generate

GRID_ROWS, GRID_COLUMNS = 8, 10


class RunObserver:
    """Samples with fixed seeds, so that two grids of a run differ only by the weights."""

    def __init__(self, config: Run, data: ImageSet):
        self.config = config
        self.data = data

    def grid(self, model: Denoiser, file: Path) -> None:
        columns = min(model.num_classes or GRID_COLUMNS, GRID_COLUMNS)
        images = torch.cat(
            [batch for batch, _ in generate(model, num_images=GRID_ROWS * columns, batch_size=GRID_ROWS * columns)]
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        image_grid(images, columns).save(file)

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
        return Evaluator(reference, settings.features, settings.metrics)
