"""`TextEvaluator`: what images are worth for their texts alone, where there are no images to compare with."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from diffdistill.errors import ConfigError
from diffdistill.evaluation.batches import Batches, labelled, rebatched
from diffdistill.evaluation.extractors.base import large_batch
from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures
from diffdistill.evaluation.text_scores import TextScores, joined, summary
from diffdistill.rewards.protocol import Reward


class TextEvaluator:
    """The CLIP score and rewards; called as an `Evaluator` is, with the same form of result.

    Args:
        metrics: `("clip",)`, or `()` for rewards alone.
        clip_model: folder or Hub id; None: the largest of OpenAI's.
        rewards: scored under `reward/NAME`.

    Raises:
        ConfigError: a metric that compares with images, or nothing to measure. CheckpointError: weights missing.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("clip",),
        *,
        clip_model: str | None = None,
        rewards: Sequence[Reward] = (),
        device: str | torch.device = "cpu",
    ):
        wrong = [metric for metric in metrics if metric != "clip"]
        if wrong or not (metrics or rewards):
            asked = f"metric '{wrong[0]}'" if wrong else "nothing"
            raise ConfigError(f"{asked} cannot be measured without a reference: choose clip, rewards, or both")
        where = torch.device(device)
        clip = HubFeatures(clip_model or DEFAULTS["clip"], where) if metrics else None
        self.scores, self.batch_size = TextScores(clip, rewards, where), large_batch(where)

    def __call__(
        self,
        batches: Batches,
        *,
        texts: Sequence[str] | None = None,
        num_images: int | None = None,
    ) -> dict[str, Any]:
        """Measure images uint8 `(N, C, H, W)`, or batches of them; image i is scored with text i mod len(texts)."""
        start = time.perf_counter()
        self.scores.check(texts)
        done, parts = 0, []
        for images, labels in rebatched(labelled(batches, None, num_images), self.batch_size, resizes=True):
            chosen = [texts[(done + i) % len(texts)] for i in range(len(images))] if texts else None
            parts.append(self.scores(images, chosen, labels))
            done += len(images)
        found = {name: {**summary(name, values).record(), "n": done} for name, values in joined(parts).items()}
        return {
            "metrics": found,
            "protocol": {"num_images": done, **self.scores.protocol(texts)},
            "warnings": [],
            "seconds": round(time.perf_counter() - start, 2),
        }
