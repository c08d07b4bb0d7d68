"""The images that RAFT trains on: of K samples a condition those that a reward likes best, drawn once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.alignment.raft import chosen
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.objectives.raft import RAFT
from diffdistill.rewards.load import load_reward
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.flat import checksum
from diffdistill.training.randomness import mix
from diffdistill.training.signals import stop_if_asked
from diffdistill.training.tasks.kept_pairs import KeptPairs, read_or_made

FOLDER = "curated"
STREAM = 6  # of noise, labels and choices, apart from the seeds of training steps, pairs and sampled images


class CuratedImages:
    """Sample i of condition j is a function of (seed, i, j) and the weights. A run keeps what was chosen (`keep`), a
    file a batch, so that a resumed one reads it and draws none again.
    """

    def __init__(self, settings: RAFT, model: Denoiser, data: ImageSet, device: Device, config: Train):
        self.settings, self.model, self.data, self.device = settings, model, data, device
        self.seed, self.batch = mix(config.seed, STREAM), config.train_batch_size
        self.reward = load_reward(settings.reward, batch_size=settings.reward_batch_size).to(device.name)
        self._check()
        self._folder: Path | None = None
        self._inputs: dict[str, Any] = {}
        self._images: ImageSet | None = None
        self.scores: dict[str, float] = {}

    def _check(self) -> None:
        """ConfigError for a reward that cannot score images of this model."""
        classes, prompts = self.model.num_classes, self.settings.class_prompts
        if self.reward.needs_prompt and prompts is None:
            raise ConfigError(
                f"the reward {self.reward.name} reads texts and the model has {classes or 'no'} classes; give the "
                f"text of each in objective.class_prompts"
            )
        if prompts is not None and len(prompts) != classes:
            raise ConfigError(
                f"objective.class_prompts has {len(prompts)} texts and the model {classes or 'no'} classes; give one "
                f"text a class"
            )

    def keep(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        """Write what is chosen into the folder of a run, and take from it what is there."""
        self._folder, self._inputs = folder / FOLDER, dict(inputs)

    def images(self) -> ImageSet:
        """Those that are kept, which the first call draws; `scores` then says what all and the kept ones scored."""
        if self._images is None:
            self._images = self._all()
        return self._images

    def _all(self) -> ImageSet:
        kept, made = self._kept(), []
        for k in range(-(-self.settings.images // self.batch)):
            stop_if_asked()
            made.append(read_or_made(kept, k, self._draw))
        all_of = {name: torch.cat([part[name] for part in made])[: self.settings.images] for name in made[0]}
        self.scores = {name: float(all_of[name].mean()) for name in ("reward", "reward_kept")}
        return ImageSet(all_of["images"], all_of.get("labels"), None, None, f"samples by {self.reward.name}", "")

    def _kept(self) -> KeptPairs | None:
        if self._folder is None:
            return None
        weights, version = checksum({"model": self.model}), getattr(self.reward, "version", None)
        what = [self.batch, self.seed, self.settings.model_dump(exclude={"images"}), version, weights, self._inputs]
        return KeptPairs(self._folder, what)

    def _draw(self, k: int) -> dict[str, Tensor]:
        """A batch of conditions: K samples of each, their scores, and the one that is kept."""
        _, labels = self.data.draw(self.batch, self.seed, k, rows=slice(0, 0))  # only the labels matter
        plan = plan_sampling(
            self.model,
            sampler=self.settings.sampler,
            steps=self.settings.steps,
            class_labels=None if labels is None else labels.tolist(),
        )
        indices = range(k * self.batch, (k + 1) * self.batch)[processes.rows(self.batch)]
        samples = []
        for i in range(self.settings.candidates):
            stop_if_asked()
            drawn = sample_batch(self.model, plan, mix(self.seed, i) % 2**32, indices, self.batch)
            samples.append(processes.gather(to_uint8(drawn), self.batch))
        images = torch.stack(samples, 1)  # (B, K, C, H, W)
        scores = torch.tensor(processes.lead(lambda: self._told(images, labels)))  # judged twice it may differ
        u = torch.rand(self.batch, generator=torch.Generator().manual_seed(mix(self.seed, k, 1) % 2**63))
        best = chosen(scores, self.settings.choice, u, self.settings.scale)
        rows = torch.arange(self.batch)
        found = {"images": images.cpu()[rows, best], "reward": scores.mean(1), "reward_kept": scores[rows, best]}
        return found if labels is None else {**found, "labels": labels[: self.batch]}

    def _told(self, images: Tensor, labels: Tensor | None) -> list[list[float]]:
        """The scores `(B, K)` of images `(B, K, C, H, W)`."""
        scores = torch.stack([self._scored(images[:, i], labels) for i in range(images.shape[1])], 1)
        told: list[list[float]] = scores.tolist()
        return told

    @torch.no_grad()
    def _scored(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Scores `(B,)` of bytes `(B, C, H, W)`: of the pictures as they would be saved."""
        size, scores = self.settings.reward_batch_size, []
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            prompts: Any = None if labels is None else labels[part].to(images.device)
            if prompts is not None and self.settings.class_prompts is not None:
                prompts = [self.settings.class_prompts[label] for label in prompts.tolist()]
            scores.append(self.reward(images[part].float() / 255, prompts))
        found = torch.cat(scores)
        if not bool(found.isfinite().all()):
            raise DataError(
                f"the reward {self.reward.name} gave a score that is not a finite number; give one for every image"
            )
        return found
