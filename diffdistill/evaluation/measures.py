"""Each metric as an entry of the result: its value, its error, its N, and the same between real images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.arrays import Estimate
from diffdistill.evaluation.backends import FRECHET, KERNEL
from diffdistill.evaluation.bootstrap import bootstrap_error
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.metrics.clip_mmd import cmmd
from diffdistill.evaluation.metrics.entropy import inception_score
from diffdistill.evaluation.metrics.frechet import Gaussian, fit, frechet_terms
from diffdistill.evaluation.metrics.memorisation import nearest_neighbours, neighbour_picture
from diffdistill.evaluation.metrics.per_class import per_class_frechet
from diffdistill.evaluation.metrics.precision_recall import prdc
from diffdistill.evaluation.reference import Reference
from diffdistill.evaluation.text_scores import summary

KID_SUBSETS, KID_SIZE = 100, 1000
PRDC_K, PRDC_LIMIT = 5, 10_000
SPLITS = 10


@dataclass
class Generated:
    """What one pass over the images left: the Gaussian of all `n`, and features of at most `sample_rows` of them."""

    n: int
    gaussian: Gaussian
    features: Tensor
    labels: Tensor | None = None
    thumbnails: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)  # of images for their texts, each `(N,)`


@dataclass
class Context:
    """Everything a measure may look at."""

    reference: Reference
    generated: Generated
    extractor: FeatureExtractor
    backend: str
    seed: int
    floor: bool
    resamples: int
    picture: Path | None = None
    warnings: list[str] = field(default_factory=list)
    floors: dict[Any, Any] = field(default_factory=dict)
    real_scores: Callable[[int], dict[str, float]] = lambda _: {}

    @cached_property
    def real(self) -> Tensor:
        """Features of the reference, float64 `(M, d)`."""
        if self.reference.features is None:
            raise ConfigError(
                f"{self.reference.name} holds statistics only, enough for fid and no other metric: give the images"
            )
        return self.reference.features.double()

    def real_sample(self, n: int) -> Tensor:
        """At most `n` rows of the reference, the same for one seed."""
        order = torch.randperm(len(self.real), generator=torch.Generator().manual_seed(self.seed))
        return self.real[order[:n]]

    def real_halves(self) -> tuple[Tensor, Tensor]:
        """Two disjoint parts of the reference: as many images as were generated (or half), and the rest."""
        order = torch.randperm(len(self.real), generator=torch.Generator().manual_seed(self.seed + 1))
        n = min(self.generated.n, len(self.real) // 2)
        return self.real[order[n:]], self.real[order[:n]]

    def floor_of(self, metric: str, compute: Callable[[Tensor, Tensor], Any]) -> dict[str, Any] | None:
        """The metric between two disjoint parts of the reference, at the same N where there are enough images."""
        if not self.floor or self.reference.features is None or len(self.real) < 8:
            return None
        rest, held = self.real_halves()
        key = (metric, len(held), self.seed)
        if key not in self.floors:
            self.floors[key] = compute(rest, held)
        return {"value": self.floors[key], "n": len(held), "n_reference": len(rest)}


def _entry(context: Context, estimate: float, **more: Any) -> dict[str, Any]:
    known = estimate if isinstance(estimate, Estimate) else Estimate(estimate)
    return {
        **known.record(),
        "n": context.generated.n,
        "n_reference": context.reference.n,
        "backend": "native",
        **more,
    }


def fid(context: Context) -> dict[str, Any]:
    real, fake = context.reference.gaussian, context.generated.gaussian
    terms = frechet_terms(real, fake)
    value = terms.value if context.backend == "native" else FRECHET[context.backend](real, fake)
    error = float("nan")
    features = context.generated.features
    if context.resamples:
        # Large covariances are slow to factor: fewer resamples know the error to a quarter of itself.
        resamples = context.resamples if features.shape[1] <= 512 else min(context.resamples, 10)
        part = len(features) / context.generated.n
        error = bootstrap_error(real, features, resamples=resamples, seed=context.seed) * part**0.5
    if terms.clipped > 1e-6:
        context.warnings.append(
            f"{terms.clipped:.1e} of the variance was clipped: a covariance has negative eigenvalues"
        )
    floor = context.floor_of("fid", lambda rest, held: frechet_terms(fit(rest), fit(held)).value)
    more = {"mean_term": terms.mean_term, "clipped": terms.clipped, "floor": floor, "backend": context.backend}
    return _entry(context, Estimate(value, error), **more)


def kid(context: Context) -> dict[str, Any]:
    fake = context.generated.features
    size = min(KID_SIZE, len(fake) // 2, len(context.real) // 2)
    value = KERNEL[context.backend](context.real, fake, KID_SUBSETS, size, context.seed)

    def between(rest: Tensor, held: Tensor) -> float:
        return float(KERNEL["native"](rest, held, KID_SUBSETS, min(size, len(held) // 2), context.seed))

    more = {"subsets": KID_SUBSETS, "subset_size": size, "backend": context.backend}
    return _entry(context, value, n=len(fake), floor=context.floor_of("kid", between), **more)


def precision_recall(context: Context) -> dict[str, Any]:
    fake = context.generated.features[:PRDC_LIMIT]
    real = context.real_sample(len(fake))
    if min(len(real), len(fake)) <= PRDC_K:
        raise DataError(f"prdc needs more than {PRDC_K} images on both sides, not {len(real)} and {len(fake)}")

    def between(rest: Tensor, held: Tensor) -> dict[str, float]:
        return prdc(rest[: len(fake)], held[: len(fake)], PRDC_K)

    floor = context.floor_of("prdc", between) if len(context.real) > 2 * PRDC_K + 2 else None
    return {**prdc(real, fake, PRDC_K), "k": PRDC_K, "n": len(fake), "n_reference": len(real), "backend": "native",
            "floor": floor}  # fmt: skip


def inception(context: Context) -> dict[str, Any]:
    def score(features: Tensor) -> Estimate:
        probabilities = context.extractor.probabilities(features)
        if probabilities is None:
            raise ConfigError(
                f"'{context.extractor.id}' is no classifier: metric 'is' needs fashion_mnist or inception"
            )
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(context.seed))
        return inception_score(probabilities[order], min(SPLITS, len(features)))

    features = context.generated.features
    value = score(features)
    real = float(score(context.real_sample(len(features)))) if context.reference.features is not None else None
    return _entry(context, value, n=len(features), splits=min(SPLITS, len(features)), of_the_reference=real)


def text_score(context: Context, name: str) -> dict[str, Any]:
    """`clip` or a reward, and the same of real images for their own captions, where they have some."""
    real = context.real_scores(context.generated.n).get(name)
    return _entry(context, summary(name, context.generated.scores[name]), of_the_reference=real)


def clip(context: Context) -> dict[str, Any]:
    return text_score(context, "clip")


def clip_mmd(context: Context) -> dict[str, Any]:
    if getattr(context.extractor, "kind", None) != "clip":
        raise ConfigError(
            f"metric 'cmmd' is defined on CLIP features, not on '{context.extractor.id}': use clip[:MODEL]"
        )
    fake = context.generated.features[:PRDC_LIMIT]
    value = cmmd(context.real_sample(PRDC_LIMIT), fake)
    floor = context.floor_of("cmmd", lambda rest, held: cmmd(rest[:PRDC_LIMIT], held[:PRDC_LIMIT]))
    return _entry(context, value, n=len(fake), floor=floor)


def per_class(context: Context) -> dict[str, Any]:
    images = context.reference.images
    if context.generated.labels is None or images is None or images.labels is None:
        raise ConfigError("metric 'per_class_fid' needs class labels of the images and of the reference")
    fake = context.generated.features
    assert context.reference.index is not None
    real_labels = images.labels[context.reference.index]
    classes = per_class_frechet(context.real, real_labels, fake, context.generated.labels[: len(fake)])
    values = [entry["value"] for entry in classes.values()]
    named = {
        images.class_names[label] if images.class_names else str(label): entry for label, entry in classes.items()
    }
    return _entry(context, sum(values) / len(values), n=len(fake), classes=named)


def neighbours(context: Context) -> dict[str, Any]:
    fake = context.generated.features[:PRDC_LIMIT]
    found = nearest_neighbours(context.real, fake)
    entry = _entry(context, found.authentic, n=len(fake), n_reference=len(context.real))
    entry |= {"nearest_distance": float(found.distance[:, 0].min()), "picture": None}
    images, thumbnails = context.reference.images, context.generated.thumbnails
    if context.picture is not None and images is not None and thumbnails is not None:
        assert context.reference.index is not None
        neighbour_picture(context.picture, thumbnails, images.images[context.reference.index], found)
        entry["picture"] = str(context.picture)
    return entry


MEASURES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "fid": fid,
    "kid": kid,
    "prdc": precision_recall,
    "is": inception,
    "clip": clip,
    "cmmd": clip_mmd,
    "per_class_fid": per_class,
    "neighbours": neighbours,
}
