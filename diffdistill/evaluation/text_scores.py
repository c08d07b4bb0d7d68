"""How well images fit their texts: the CLIP score, and rewards that nothing was optimised for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.prompts import Prompt, digest_of, spread
from diffdistill.errors import ConfigError
from diffdistill.evaluation.arrays import Estimate
from diffdistill.evaluation.extractors.hub import HubFeatures
from diffdistill.evaluation.metrics.clip_similarity import cosines, score_of
from diffdistill.rewards.protocol import Reward

NO_TEXTS = "metric 'clip' needs a text for each image: give images with captions, --prompt or --prompts"


class TextScores:
    """A CLIP and rewards, each of which gives every image a number for its text.

    Args:
        clip: for the metric `clip`, or None.
        rewards: scored under the names of `by_name`.
        device: where the rewards run.
    """

    def __init__(self, clip: HubFeatures | None, rewards: Sequence[Reward], device: torch.device):
        self.clip, self.device = clip, device
        self.rewards = {name: reward.to(device) for name, reward in by_name(rewards).items()}

    def check(self, texts: Sequence[str] | None) -> None:
        """ConfigError where there is nothing to compare images with; a reward that may read labels speaks itself."""
        if self.clip is not None and not texts:
            raise ConfigError(NO_TEXTS)

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str] | None, labels: Tensor | None) -> dict[str, Tensor]:
        """Images uint8 `(B, C, H, W)` and B texts, or labels `(B,)` -> numbers `(B,)` by name, float64 on the CPU."""
        found = {}
        if self.clip is not None:
            assert texts is not None
            found["clip"] = cosines(self.clip(images), self.clip.embed_texts(texts))
        for name, reward in self.rewards.items():
            given = list(texts) if texts is not None else labels
            found[name] = reward(images.to(self.device).float() / 255, given).double().cpu()
        return found

    def of_real(self, images: ImageSet, count: int, batch_size: int) -> dict[str, float]:
        """Mean scores of at most `count` images of a reference, evenly spaced, for their own captions; {} without."""
        if images.texts is None or not (self.clip or self.rewards):
            return {}
        rows = spread(range(len(images)), count)
        texts, labels = images.texts, images.labels
        parts = [
            self(images.images[part], [texts[i] for i in part], None if labels is None else labels[part])
            for part in (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        ]
        whole = joined(parts)
        return {name: float(summary(name, values)) for name, values in whole.items()}

    def protocol(self, texts: Sequence[str] | None) -> dict[str, Any]:
        """Which texts, and which networks scored."""
        known = None if not texts else {"count": len(texts), "sha256": digest_of([Prompt(text) for text in texts])}
        clip = None if self.clip is None else {"id": self.clip.id, "sha256": self.clip.sha256}
        return {
            "texts": known,
            "clip_model": clip,
            "rewards": {name: getattr(reward, "version", None) for name, reward in self.rewards.items()},
        }


def by_name(rewards: Sequence[Reward], kind: str = "reward") -> dict[str, Reward]:
    """Rewards as `reward/NAME`; a second one of the same name is `reward/NAME-2`."""
    found: dict[str, Reward] = {}
    for reward in rewards:
        same = sum(other.name == reward.name for other in found.values())
        found[f"{kind}/{reward.name}" + (f"-{same + 1}" if same else "")] = reward
    return found


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Scores of batches as those of all."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def summary(name: str, values: Tensor) -> Estimate:
    """The mean of scores `(N,)` and its standard error; of the cosines `clip` the CLIP score."""
    if name == "clip":
        return score_of(values)
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error)
