"""Scores of single images: for their texts by a CLIP and by rewards, or by a function of a metric's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.prompts import Prompt, digest_of, spread
from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Estimate
from diffdistill.evaluation.clip_similarity import cosines, score_of
from diffdistill.evaluation.extractors.hub import HubFeatures
from diffdistill.rewards.protocol import Reward

Function = Callable[[Tensor, Sequence[str] | None], Tensor]


class Scores:
    """What gives every image a number.

    Args:
        clip: for the metric `clip`, or None.
        rewards: scored under the names of `by_name`.
        device: where the rewards run.
        functions: `Metric.score` of further metrics, by their names.
    """

    def __init__(
        self,
        clip: HubFeatures | None,
        rewards: Sequence[Reward],
        device: torch.device,
        functions: Mapping[str, Function] | None = None,
    ):
        self.clip, self.device, self.functions = clip, device, dict(functions or {})
        self.rewards = {name: reward.to(device) for name, reward in by_name(rewards).items()}

    @torch.no_grad()
    def __call__(
        self, images: Tensor, texts: Sequence[str] | None, labels: Tensor | None, *, only_functions: bool = False
    ) -> dict[str, Tensor]:
        """Images uint8 `(B, C, H, W)` and B texts, or labels `(B,)` -> numbers `(B,)` by name, float64 on the CPU."""
        scores = {}
        for name, function in self.functions.items():
            scores[name] = one_a_picture(f"metric '{name}'", function(images, texts), len(images))
        if only_functions:
            return scores
        if self.clip is not None:
            assert texts is not None
            scores["clip"] = cosines(self.clip(images), self.clip.embed_texts(texts))
        for name, reward in self.rewards.items():
            given = list(texts) if texts is not None else labels
            scored = reward(images.to(self.device).float() / 255, given)
            scores[name] = one_a_picture(name.replace("/", " ", 1), scored, len(images))
        return scores

    def of_real(self, images: ImageSet, count: int, batch_size: int) -> dict[str, float]:
        """Mean scores of at most `count` images of a reference, evenly spaced; those for texts need captions."""
        captioned = images.texts is not None
        if not (self.functions or (captioned and (self.clip or self.rewards))):
            return {}
        rows = spread(range(len(images)), count)
        texts, labels = images.texts, images.labels
        parts = [
            self(
                images.images[part],
                None if texts is None else [texts[i] for i in part],
                None if labels is None else labels[part],
                only_functions=not captioned,
            )
            for part in (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        ]
        return {name: float(summary(name, values)) for name, values in joined(parts).items()}

    def protocol(self, texts: Sequence[str] | None) -> dict[str, Any]:
        """Which texts, and which networks scored."""
        known = None if not texts else {"count": len(texts), "sha256": digest_of([Prompt(text) for text in texts])}
        clip = None if self.clip is None else {"id": self.clip.id, "sha256": self.clip.sha256}
        return {
            "texts": known,
            "clip_model": clip,
            "rewards": {name: getattr(reward, "version", None) for name, reward in self.rewards.items()},
        }


def one_a_picture(who: str, given: Any, count: int) -> Tensor:
    """What a function gave for `count` images as float64 `(count,)` on the CPU; DataError for anything else."""
    try:
        # float64 on the CPU alone: some accelerators have none.
        values = torch.as_tensor(given).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{who} gave {given!r:.60} for {count} images: one number an image is needed") from None
    if values.shape != (count,):
        raise DataError(
            f"{who} gave {tuple(values.shape)} for {count} images: one number an image, a tensor of shape "
            f"({count},), is needed"
        )
    return values


def by_name(rewards: Sequence[Reward], kind: str = "reward") -> dict[str, Reward]:
    """Rewards as `reward/NAME`; a second one of the same name is `reward/NAME-2`."""
    named: dict[str, Reward] = {}
    for reward in rewards:
        same = sum(other.name == reward.name for other in named.values())
        named[f"{kind}/{reward.name}" + (f"-{same + 1}" if same else "")] = reward
    return named


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Scores of batches as those of all."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def summary(name: str, values: Tensor) -> Estimate:
    """The mean of scores `(N,)` and its standard error; of the cosines `clip` the CLIP score."""
    return score_of(values) if name == "clip" else Estimate.mean_of(values)
