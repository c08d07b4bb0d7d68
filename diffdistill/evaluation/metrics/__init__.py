"""A metric a file: what it is called, what it needs, how it is computed; the arithmetic lies in `evaluation/`.

A metric of your own is the same outside the package, given as `--metrics FILE.py:METRIC --allow-code`, as an entry of
a config's `evaluation.metrics`, or by the environment variable DIFFDISTILL_PLUGINS:

    from diffdistill.evaluation.metrics import Metric

    def contrast(images, texts):  # uint8 (B, C, H, W), B texts or None -> numbers (B,)
        return images.double().std((1, 2, 3))

    METRIC = Metric(name="contrast", label="Contrast", score=contrast, lower_is_better=None)

Help, settings, logs, tables, charts and reports ask here for names, labels and directions. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffdistill.errors import ConfigError, DataError
from diffdistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.context import Context
    from diffdistill.evaluation.probe import Probe

NEEDS = {
    "reference": "something to compare with, if only a statistics file",
    "images": "the images of the reference, by their features",
    "pixels": "the images of the reference, of which no features are looked at",
    "other_half": "a second model, which was trained on other images",
    "labels": "class labels of the images and of the reference",
    "texts": "a text for each image",
    "clip": "a CLIP, which scores images for their texts",
    "classifier": "features of a classifier",
    "clip_features": "features of a CLIP",
}


@dataclass(frozen=True)
class Figure:
    """One number of a result.

    label: its name in tables and charts. lower_is_better: None where neither direction is. of_features: the label is
    that of the Inception of 2015 only; with other features the name of these is added.

    >>> from diffdistill.evaluation.metrics import metric
    >>> metric("prdc").numbers[0]
    Figure(name='precision', label='Precision', lower_is_better=False, of_features=False)
    """

    name: str
    label: str
    lower_is_better: bool | None = False
    of_features: bool = False


@dataclass(frozen=True)
class Metric:
    """A row of the registry, `METRIC` in its file. One of `compute`, `score` and `probe` is given.

    Args:
        name: in flags, settings, logs and results.
        label: in tables and charts.
        compute: from everything one pass over the images left, an entry of the result: a dict with `value`
            (`Context.entry` makes it), or with a number under the name of each of `figures`.
        score: uint8 images `(B, C, H, W)` and B texts, or None, to numbers `(B,)`; the figure is their mean, with its
            standard error, and stands beside that of real images.
        look: beside `compute`, what it looks at in each image: uint8 `(B, C, H, W)` to k numbers each, `(B, k)`, which
            are kept of all images (`Context.seen`) and of at most 10,000 real ones (`Context.real_seen`).
        probe: from a model itself, an entry as of `compute`; such a metric is of `evaluate --model` alone.
        lower_is_better: the direction; None where neither is better.
        summary: what it measures, a few words.
        needs: of `NEEDS`; what is not there is refused before anything is measured.
        figures: the numbers of its entry where it holds several; empty: one, `value`, of the metric's own name.
        of_features: as of `Figure`.
        order: its place in lists.
        least: images that it needs, generated and to compare with; fewer are refused before anything is measured.

    Raises:
        ValueError: no way to compute it or several, or a need that is not known.

    >>> import torch
    >>> def contrast(images, texts):
    ...     return images.double().std((1, 2, 3))
    >>> METRIC = Metric(name="contrast", label="Contrast", score=contrast, lower_is_better=None)
    >>> METRIC.score(torch.full((2, 1, 28, 28), 7, dtype=torch.uint8), None)
    tensor([0., 0.], dtype=torch.float64)
    """

    name: str
    label: str
    compute: "Callable[[Context], dict[str, Any]] | None" = None
    score: "Callable[[Tensor, Sequence[str] | None], Tensor] | None" = None
    look: "Callable[[Tensor], Tensor] | None" = None
    probe: "Callable[[Probe], dict[str, Any]] | None" = None
    lower_is_better: bool | None = False
    summary: str = ""
    needs: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    of_features: bool = False
    order: int = 1000
    least: int = 1

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.compute, self.score, self.probe)) != 1:
            raise ValueError(f"metric '{self.name}' must have compute, score or probe, one of them")
        if self.look is not None and self.compute is None:
            raise ValueError(f"metric '{self.name}' looks at images for its compute, and has none")
        if unknown := [need for need in self.needs if need not in NEEDS]:
            raise ValueError(f"metric '{self.name}' needs '{unknown[0]}', which must be one of {', '.join(NEEDS)}")

    @property
    def compares(self) -> bool:
        """Whether it is measured against other images."""
        return bool({"reference", "images", "pixels"} & set(self.needs))

    @property
    def looks_at_features(self) -> bool:
        """Whether it needs the features of images, those of the reference too: not what scores single images."""
        if {"reference", "images", "classifier", "clip_features"} & set(self.needs):
            return True
        return self.score is None and self.probe is None and not {"clip", "pixels"} & set(self.needs)

    @property
    def numbers(self) -> tuple[Figure, ...]:
        """Its figures, one at least."""
        return self.figures or (Figure(self.name, self.label, self.lower_is_better, self.of_features),)

    def measure(self, context: "Context") -> dict[str, Any]:
        """The entry of the result."""
        return self.checked(self.compute(context) if self.compute else context.mean_score(self.name))

    def checked(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry, its figures as numbers; ConfigError where it has none."""
        names = [figure.name for figure in self.figures] or ["value"]
        if not isinstance(entry, dict) or not {"value", *names} & entry.keys():
            raise ConfigError(
                f"metric '{self.name}' gave {entry!r:.60}; its compute must return a dict with a number under "
                f"{' or '.join(map(repr, names))}"
            )
        for name in {"value", *names} & entry.keys():
            entry[name] = self._number(name, entry[name])
        return entry

    def _number(self, name: str, value: Any) -> float:
        try:
            return value if isinstance(value, float) else float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"metric '{self.name}' gave {name} = {value!r:.60}; it must be a number") from None


METRICS: Registry[Metric] = Registry("metric", Metric, "diffdistill.evaluation.metrics", "METRIC")
_GIVEN: dict[str, Metric] = {}  # those that were named as FILE.py:NAME


def metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of lists; those given as FILE.py:NAME so far come along.

    >>> metrics()["kid"].label, metrics()["kid"].lower_is_better
    ('KID', True)
    """
    return dict(sorted((METRICS.rows() | _GIVEN).items(), key=lambda item: item[1].order))


def metric(name: str) -> Metric:
    """The metric of that name, or of `FILE.py:NAME`, which is known by its own name from then on, until a later one.

    Raises ConfigError where there is none, with the names there are.

    >>> metric("fid").summary
    'Distance to real images'
    >>> metric("fit")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: metric 'fit' is not known (did you mean fid?); it must be one of brightness, ...
    """
    if name in (known := metrics()):
        return known[name]
    row = METRICS.get(name)
    if METRICS.rows().get(row.name, row) is not row:
        raise ConfigError(f"'{name}' calls its metric '{row.name}', as another is called; give it a name of its own")
    _GIVEN[row.name] = row
    return row


def too_few(names: Sequence[str], count: int) -> str | None:
    """What keeps so many images from being measured by these metrics; None where nothing does.

    >>> too_few(["fid", "kid"], 3)
    "metric 'kid' needs 4 at least"
    """
    row = max((metric(name) for name in names), key=lambda row: row.least, default=None)
    return f"metric '{row.name}' needs {row.least} at least" if row is not None and count < row.least else None


def check_enough(names: Sequence[str], count: int, data: str) -> None:
    """DataError where `data` has fewer images than one of these metrics needs.

    >>> check_enough(["fid", "kid"], 3, "my/pngs")
    Traceback (most recent call last):
    diffdistill.errors.DataError: my/pngs has 3 images, and metric 'kid' needs 4 at least: give more, or ...
    """
    if (need := too_few(names, count)) is not None:
        images = "1 image" if count == 1 else f"{count} images"
        raise DataError(f"{data} has {images}, and {need}: give more, or leave it out of the metrics")
