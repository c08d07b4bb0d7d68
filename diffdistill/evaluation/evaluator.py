"""`Evaluator`: the metrics of generated images against one reference, as a JSON-able result with its protocol."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.errors import ConfigError
from diffdistill.evaluation.backends import BACKENDS, backend_version
from diffdistill.evaluation.batches import Batches, labelled, rebatched
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures
from diffdistill.evaluation.features import load_features
from diffdistill.evaluation.measures import MEASURES, Context, Generated, text_score
from diffdistill.evaluation.metrics.frechet import Moments
from diffdistill.evaluation.metrics.memorisation import thumbnails
from diffdistill.evaluation.reference import Reference, load_reference, sample_rows
from diffdistill.evaluation.statistics import Statistics, check_same_features
from diffdistill.evaluation.text_scores import TextScores, joined
from diffdistill.rewards.protocol import Reward


class Evaluator:
    """Metrics of generated images against one reference; cheap to call again, as a training loop does.

    The reference's features are computed once, kept in memory, and on disk under a key of the data's fingerprint and
    the extractor's SHA-256 (`DIFFDISTILL_CACHE`, else the user's cache folder).

    Args:
        reference: images, or a statistics file's content (enough for `fid`).
        extractor: a name for `load_features`, or an extractor.
        metrics: of fid, kid, prdc, is, clip, cmmd, per_class_fid, neighbours.
        backend: whose arithmetic computes fid and kid.
        mode: resize, `tf` or `clean`; None: the extractor's own.
        seed: of subsets and resamples.
        floor: also measure the reference against itself, at the same N.
        resamples: of the bootstrap that gives fid its standard error; 0: none.
        clip_model: folder or Hub id of the CLIP that scores texts; None: the extractor if it is one, else the largest
            of OpenAI's.
        rewards: further scores of images for their texts, under `reward/NAME`.
        progress: show a bar while the reference is computed.

    Raises:
        ConfigError: an unknown metric, backend or extractor. CheckpointError: weights missing or damaged.
        DataError: statistics of another extractor, images that do not fit.
    """

    def __init__(
        self,
        reference: ImageSet | Statistics,
        extractor: str | FeatureExtractor = "fashion_mnist",
        metrics: Sequence[str] = ("fid",),
        *,
        backend: str = "native",
        mode: str | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        floor: bool = True,
        resamples: int = 50,
        clip_model: str | None = None,
        rewards: Sequence[Reward] = (),
        progress: bool = False,
    ) -> None:
        unknown = [metric for metric in metrics if metric not in MEASURES]
        if unknown or not metrics:
            asked = f"no metric '{', '.join(unknown)}'" if unknown else "no metric is asked for"
            raise ConfigError(f"{asked}: choose of {', '.join(MEASURES)}")
        if backend not in BACKENDS:
            raise ConfigError(f"no backend '{backend}': choose of {', '.join(BACKENDS)}")
        self.backend, self.backend_version = backend, backend_version(backend)
        self.metrics, self.seed, self.floor, self.resamples = tuple(metrics), seed, floor, resamples
        self.extractor = load_features(extractor, device=device) if isinstance(extractor, str) else extractor
        if mode is not None:
            self.extractor.mode = mode
        clip = self._clip_model(clip_model, torch.device(device)) if "clip" in metrics else None
        self.text_scores = TextScores(clip, rewards, torch.device(device))
        self.warning: str | None = None
        if isinstance(reference, Statistics):
            check_same_features(reference, self.extractor)
            self.reference = Reference.of_statistics(reference)
        else:
            self.reference, self.warning = load_reference(reference, self.extractor, progress=progress)
        self._floors: dict[Any, Any] = {}

    def _clip_model(self, name: str | None, device: torch.device) -> HubFeatures:
        if name is None and isinstance(self.extractor, HubFeatures) and self.extractor.kind == "clip":
            return self.extractor
        return HubFeatures(name or DEFAULTS["clip"], device)

    def __call__(
        self,
        batches: Batches,
        *,
        labels: Tensor | None = None,
        texts: Sequence[str] | None = None,
        num_images: int | None = None,
        picture: str | Path | None = None,
    ) -> dict[str, Any]:
        """Measure images; returns `{"metrics": {...}, "protocol": {...}, "warnings": [...], "seconds": ...}`.

        Args:
            batches: uint8 `(N, C, H, W)`, or batches of it, or of `(images, labels)`, such as `generate` yields.
            labels: int64 `(N,)`, for `per_class_fid`.
            texts: for `clip` and rewards; image i is scored with text i mod len(texts).
            num_images: measure the first so many; None: all.
            picture: where `neighbours` writes its PNG.

        Raises:
            DataError: too few images, images of several sizes without a mode, features that are not finite.
        """
        start = time.perf_counter()
        self.text_scores.check(texts)
        generated, resizes, shape = self._pass(labelled(batches, labels, num_images), texts, picture is not None)
        context = Context(
            self.reference, generated, self.extractor, self.backend, self.seed, self.floor, self.resamples,
            None if picture is None else Path(picture), self._warnings(generated, resizes, shape), self._floors,
            self._real_scores,
        )  # fmt: skip
        found = {metric: MEASURES[metric](context) for metric in self.metrics}
        found |= {name: text_score(context, name) for name in self.text_scores.rewards}
        return {
            "metrics": found,
            "protocol": self._protocol(generated, resizes, texts),
            "warnings": context.warnings,
            "seconds": round(time.perf_counter() - start, 2),
        }

    def _pass(
        self, pairs: Iterator[tuple[Tensor, Tensor | None]], texts: Sequence[str] | None, pictures: bool
    ) -> tuple[Generated, list[str], torch.Size]:
        """One streaming pass: moments of all images, features of at most `sample_rows` of them."""
        moments, room = Moments(self.extractor.dim), sample_rows(self.extractor.dim)
        features, labels, small, scores = [], [], [], []
        resizes: dict[str, None] = {}
        shape = torch.Size()
        for images, own in rebatched(pairs, self.extractor.batch_size, self.extractor.mode is not None):
            new = self.extractor(images)
            chosen = None if not texts else [texts[(moments.n + i) % len(texts)] for i in range(len(images))]
            scores.append(self.text_scores(images, chosen, own))
            moments.update(new)
            features.append(new[:room])
            room -= len(features[-1])
            labels.append(own)
            if pictures:
                small.append(thumbnails(images[: len(features[-1])]))
            shape = images.shape[1:]
            resizes[self.extractor.resize_used(*shape[1:])] = None
        gaussian = moments.gaussian()
        known = [x for x in labels if x is not None]
        generated = Generated(
            moments.n,
            gaussian,
            torch.cat(features),
            torch.cat(known) if len(known) == len(labels) else None,
            torch.cat(small) if small else None,
            joined(scores),
        )
        return generated, list(resizes), shape

    def _real_scores(self, count: int) -> dict[str, float]:
        images = self.reference.images
        if not self.floor or images is None:
            return {}
        if (key := ("text scores", count)) not in self._floors:
            self._floors[key] = self.text_scores.of_real(images, count, self.extractor.batch_size)
        return self._floors[key]

    def _warnings(self, generated: Generated, resizes: list[str], shape: torch.Size) -> list[str]:
        found = [] if self.warning is None else [self.warning]
        found += [f"generated images: {problem}" for problem in generated.gaussian.problems()]
        found += [f"reference: {problem}" for problem in self.reference.gaussian.problems()]
        images = self.reference.images
        if images is not None and images.images.shape[1:] != shape:
            ours, theirs = ("x".join(map(str, s)) for s in (shape, images.images.shape[1:]))
            found.append(f"the images are {ours} (C x H x W), the reference is {theirs}: a difference in itself")
        if self.reference.resize is not None and resizes != [self.reference.resize]:
            found.append(
                f"resize is {', '.join(resizes)} for the images and {self.reference.resize} for the reference"
            )
        return found

    def _protocol(self, generated: Generated, resizes: list[str], texts: Sequence[str] | None) -> dict[str, Any]:
        return {
            "num_images": generated.n,
            "features": {"id": self.extractor.id, "sha256": self.extractor.sha256, "dim": self.extractor.dim},
            "resize": "+".join(resizes),
            "reference": {
                "name": self.reference.name,
                "fingerprint": self.reference.fingerprint,
                "num_images": self.reference.n,
                "resize": self.reference.resize,
            },
            "backend": self.backend_version,
            "seed": self.seed,
            **self.text_scores.protocol(texts),
        }


def evaluate_images(
    images: Batches,
    reference: ImageSet | Statistics,
    *,
    metrics: Sequence[str] = ("fid",),
    extractor: str | FeatureExtractor = "fashion_mnist",
    labels: Tensor | None = None,
    texts: Sequence[str] | None = None,
    num_images: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Metrics of generated images against a reference, once: `Evaluator(reference, ...)(images, ...)`, which see."""
    evaluator = Evaluator(reference, extractor, metrics, **settings)
    return evaluator(images, labels=labels, texts=texts, num_images=num_images)
