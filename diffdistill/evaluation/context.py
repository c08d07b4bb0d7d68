"""What a metric may look at: the reference, what one pass over the images left, and the settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.evaluation.arrays import Estimate
from diffdistill.evaluation.backends import Backend
from diffdistill.evaluation.draws import content_keys, ranked
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.moments import Gaussian
from diffdistill.evaluation.reference import Reference
from diffdistill.evaluation.text_scores import summary


@dataclass
class Generated:
    """What one pass over the images left: the Gaussian of all `n`, and features of at most `sample_rows` of them,
    drawn at random; labels and thumbnails are of these.

    Without a reference there are no features: `scores` alone, of images by themselves or for their texts, each `(N,)`.
    """

    n: int
    gaussian: Gaussian
    features: Tensor
    labels: Tensor | None = None
    thumbnails: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Context:
    """Everything that `Metric.compute` may look at.

    compared, features: the reference and the extractor, None where nothing is compared; a metric reads them as
    `reference` and `extractor`. floors: the figures between real images, kept from one evaluation to the next.
    """

    generated: Generated
    compared: Reference | None
    features: FeatureExtractor | None
    backend: Backend
    seed: int
    floor: bool
    resamples: int | None
    picture: Path | None = None
    warnings: list[str] = field(default_factory=list)
    floors: dict[Any, Any] = field(default_factory=dict)
    real_scores: Callable[[int], dict[str, float]] = lambda _: {}
    real_looks: Callable[[], dict[str, Tensor]] = dict

    @property
    def reference(self) -> Reference:
        if self.compared is None:
            raise ConfigError("a metric compares with images, and there is no reference: give one")
        return self.compared

    @property
    def extractor(self) -> FeatureExtractor:
        if self.features is None:
            raise ConfigError("a metric looks at features, and there is no reference to have them of: give one")
        return self.features

    @property
    def real(self) -> Tensor:
        """Features of the reference `(M, d)`, float32 where that loses nothing: who computes makes float64 of what it
        takes. ConfigError for a statistics file.
        """
        return self.reference.sample()

    def real_sample(self, n: int) -> Tensor:
        """At most `n` rows of the reference, the same for one seed, whatever their order."""
        return self.real[ranked(content_keys(self.real), self.seed)[:n]].double()

    def some(self, n: int) -> Tensor:
        """Which rows of the generated features a metric looks at that can look at `n`: all, or a random sample, which
        the order of the images does not decide.
        """
        rows = len(self.generated.features)
        if rows <= n:
            return torch.arange(rows)
        return ranked(content_keys(self.generated.features), self.seed + 2)[:n].sort().values

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

    def entry(self, estimate: float, **more: Any) -> dict[str, Any]:
        """An entry of the result: value, standard error and interval, numbers of images, and what else is known."""
        known = estimate if isinstance(estimate, Estimate) else Estimate(estimate)
        entry: dict[str, Any] = {**known.record(), "n": self.generated.n}
        if self.compared is not None:
            entry |= {"n_reference": self.compared.n, "backend": "native"}
        return entry | more

    def seen(self, name: str) -> Tensor:
        """What `Metric.look` saw in each of the images, `(N, k)` float64."""
        return self.generated.scores[name]

    def real_seen(self, name: str) -> Tensor:
        """The same of real images, evenly spaced ones where there are more than 10,000: `(M, k)`."""
        return self.real_looks()[name]

    def mean_score(self, name: str) -> dict[str, Any]:
        """The mean of a score of the images, and the same of real images, where those can be scored."""
        value = summary(name, self.generated.scores[name])
        if self.compared is None:
            return self.entry(value)
        return self.entry(value, of_the_reference=self.real_scores(self.generated.n).get(name))
