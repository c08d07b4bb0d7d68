"""The negatives of a round: images that its reference draws, once, in the data's proportions of classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.matching.micro_batches import rows_of
from diffdistill.objectives.ddo import DDO
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.flat import checksum
from diffdistill.training.randomness import mix
from diffdistill.training.signals import stop_if_asked
from diffdistill.training.tasks.kept_pairs import KeptPairs, read_or_made

FOLDER = "reference"
STREAM = 4  # of their noise and labels, apart from the seeds of training steps, pairs and sampled images


class ReferenceImages:
    """Drawn by a solver without noise of its own, and rounded to bytes as the data are: at low levels that shows.

    Image i of round r is a function of (seed, r, i) and the weights. A run keeps them (`keep`), a file a batch, so
    that a resumed one reads them and draws none again.
    """

    def __init__(self, settings: DDO, reference: Denoiser, data: ImageSet, device: Device, config: Train):
        self.settings, self.reference, self.data, self.device, self.config = settings, reference, data, device, config
        self.batch = config.train_batch_size
        self._folder: Path | None = None
        self._inputs: dict[str, Any] = {}
        self._round: tuple[int, ImageSet] | None = None

    def keep(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        """Write what is drawn into the folder of a run, and take from it what is there."""
        self._folder, self._inputs = folder / FOLDER, dict(inputs)

    def of_round(self, number: int) -> ImageSet:
        """The images of a round, which begins with the first call."""
        if self._round is None or self._round[0] != number:
            self._round = number, self._all(number)
        return self._round[1]

    def _all(self, number: int) -> ImageSet:
        kept = self._kept(number)
        made = []
        for k in range(self.settings.reference_images // self.batch):
            stop_if_asked()
            made.append(read_or_made(kept, k, lambda k: self._draw(number, k)))
        labels = torch.cat([part["labels"] for part in made]) if "labels" in made[0] else None
        name = f"samples of round {number}"
        return ImageSet(torch.cat([part["images"] for part in made]), labels, None, None, name, "")

    def _kept(self, number: int) -> KeptPairs | None:
        """Their files; the weights are in what these say they were made from, for another branch may choose others."""
        if self._folder is None:
            return None
        settings = self.settings.model_dump(include={"reference_sampler", "reference_steps"})
        weights = checksum({"reference": self.reference})
        what = [number, self.batch, self.config.seed, settings, weights, self._inputs]
        return KeptPairs(self._folder / f"round-{number:03}", what)

    def _draw(self, number: int, k: int) -> dict[str, Tensor]:
        seed = mix(self.config.seed, STREAM, number)
        nothing = slice(0, 0)  # only the labels matter
        _, labels = self.data.draw(self.batch, seed, k, rows=nothing)
        plan = plan_sampling(
            self.reference,
            sampler=self.settings.reference_sampler,
            steps=self.settings.reference_steps,
            class_labels=None if labels is None else labels.tolist(),
        )
        mine = processes.rows(self.batch)
        indices = range(k * self.batch, (k + 1) * self.batch)[mine]
        images = sample_batch(self.reference, plan, seed % 2**32, indices, self.batch)
        drawn = {"images": processes.gather(to_uint8(images), self.batch).cpu()}
        return drawn if labels is None else {**drawn, "labels": rows_of(labels, slice(0, self.batch))}
