"""RAFT (2304.06767): a denoiser is trained on its own samples that a reward likes best, beside real images."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.matching.micro_batches import Metrics
from diffdistill.objectives.raft import RAFT
from diffdistill.training.device import Device
from diffdistill.training.randomness import mix
from diffdistill.training.signals import stoppable
from diffdistill.training.tasks.curated import STREAM, CuratedImages
from diffdistill.training.tasks.teacher import TeacherTask


class RaftTask(TeacherTask):
    """minimise (1 - lambda) E_kept L + lambda E_data L, L the denoising loss, lambda the part of real images."""

    def __init__(self, config: Train, data: ImageSet, device: Device, start: Denoiser | None = None):
        assert isinstance(config.objective, RAFT)
        self.objective = config.objective
        super().__init__(config, data, device, start)
        self.curated = CuratedImages(self.objective, self.start, data, device, config)

    def others(self) -> dict[str, Denoiser]:
        self.start: Denoiser = copy.deepcopy(self.model).requires_grad_(False).eval()
        return {"start": self.start}

    def keep(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.curated.keep(folder, inputs)

    def drawn(self, step: int, mine: slice) -> tuple[Tensor, Tensor | None]:
        config, count = self.config, self.config.train_batch_size
        with stoppable():  # drawing the samples may take minutes, and moves no weight
            kept = self.curated.images()
        flip = config.data.horizontal_flip
        images, labels = kept.draw(count, mix(config.seed, STREAM), step, flip, mine)
        real = round(self.objective.real_part * count)
        if real:
            others, their_labels = self.data.draw(real, config.seed, step, flip)
            images = torch.cat([others, images[real:]])
            labels = None if labels is None or their_labels is None else torch.cat([their_labels, labels[real:]])
        return images, labels

    def update(self, step: int) -> Metrics:
        return {**super().update(step), **{f"raft/{name}": value for name, value in self.curated.scores.items()}}
