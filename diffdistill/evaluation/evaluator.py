"""`Evaluator`: the metrics of generated images, against a reference or by themselves, as a JSON-able result."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.data import ImageSet
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.backends import BACKENDS
from diffdistill.evaluation.batches import Batches, labelled, rebatched
from diffdistill.evaluation.context import Context, Generated
from diffdistill.evaluation.extractors.base import FeatureExtractor, large_batch
from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures
from diffdistill.evaluation.features import choose_features
from diffdistill.evaluation.figures import described, undefined
from diffdistill.evaluation.looks import Looks
from diffdistill.evaluation.memorisation import thumbnails
from diffdistill.evaluation.metrics import Metric, check_enough, metric, metrics
from diffdistill.evaluation.moments import Gaussian, Moments
from diffdistill.evaluation.reference import Reference, load_reference, sample_rows
from diffdistill.evaluation.resize import check_mode
from diffdistill.evaluation.sample import StreamSample
from diffdistill.evaluation.statistics import Statistics, check_same_features
from diffdistill.evaluation.text_scores import Scores, joined
from diffdistill.rewards.protocol import Reward

SCORE = "score "
NO_FEATURES = Gaussian(torch.zeros(0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64))


class Evaluator:
    """Metrics of generated images; cheap to call again, as a training loop does.

    The reference's features are computed once, kept in memory, and on disk under a key of the data's fingerprint and
    the extractor's SHA-256 (`DIFFDISTILL_CACHE`, else the user's cache folder).

    Args:
        reference: images, or a statistics file's content (enough for `fid`); None: nothing to compare with, so only
            metrics of an image and its text are measured, as `clip` and rewards. Ignored where only rewards are
            measured.
        extractor: a name for `load_features`, or an extractor; None: what fits the reference (`choose_features`).
        metrics: names of `diffdistill.evaluation.metrics`, or `FILE.py:NAME`.
        backend: whose arithmetic computes fid and kid.
        mode: resize, `tf` or `clean`; None: the extractor's own.
        seed: of subsets and resamples.
        floor: also measure the reference against itself, at the same N.
        resamples: what gives fid its standard error: None, the delta method; so many bootstrap resamples; 0, nothing.
        clip_model: folder or Hub id of the CLIP that scores texts; None: the extractor if it is one, else the largest
            of OpenAI's.
        rewards: further scores of images for their texts, under `reward/NAME`.
        progress: show a bar while the reference is computed.

    Attributes:
        warnings: those that every result carries, such as that the features do not see what the reference shows.

    Raises:
        ConfigError: an unknown metric, backend, extractor or mode; a metric whose needs are not met. CheckpointError:
            weights missing or damaged. DataError: statistics of another extractor, images that do not fit.

    Real images against themselves:

    >>> from diffdistill.data import load_images
    >>> emoji = load_images("builtin:emoji", split="held_out")
    >>> evaluator = Evaluator(emoji, metrics=["fid", "prdc"], resamples=0)
    >>> result = evaluator(emoji.images)
    >>> round(result["metrics"]["fid"]["value"], 6), result["metrics"]["prdc"]["recall"]
    (0.0, 1.0)
    >>> result["protocol"]["num_images"], result["protocol"]["reference"]["name"]
    (190, 'builtin:emoji')
    """

    def __init__(
        self,
        reference: ImageSet | Statistics | None = None,
        extractor: str | FeatureExtractor | None = None,
        metrics: Sequence[str] = ("fid",),
        *,
        backend: str = "native",
        mode: str | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        floor: bool = True,
        resamples: int | None = None,
        clip_model: str | None = None,
        rewards: Sequence[Reward] = (),
        progress: bool = False,
    ) -> None:
        self.metrics = _known(metrics, rewards)
        self.backend = BACKENDS.get(backend)
        self.backend_version = self.backend.version()
        self.seed, self.floor, self.resamples, self.device = seed, floor, resamples, torch.device(device)
        self.extractor: FeatureExtractor | None = None
        self.reference: Reference | None = None
        self.warnings: list[str] = []
        if isinstance(reference, ImageSet):
            check_enough([row.name for row in self.metrics if row.compares], len(reference), reference.name)
        if reference is not None and (extractor is not None or any(row.looks_at_features for row in self.metrics)):
            self._compare_with(reference, extractor, mode, progress)
        elif reference is not None and metrics:
            self.reference = _without_features(reference)
        for row in self.metrics:
            self._check(row)
        clip = self._clip_model(clip_model) if any("clip" in row.needs for row in self.metrics) else None
        functions = {row.name: row.score for row in self.metrics if row.score is not None}
        self.scores = Scores(clip, rewards, self.device, functions)
        self.looks = Looks({row.name: row.look for row in self.metrics if row.look is not None})
        self._floors: dict[Any, Any] = {}

    def _compare_with(
        self,
        reference: ImageSet | Statistics,
        extractor: str | FeatureExtractor | None,
        mode: str | None,
        progress: bool,
    ) -> None:
        if mode is not None:
            check_mode(mode)
        self.extractor = choose_features(extractor, reference, self.device)
        self.extractor.mode = mode or self.extractor.mode
        if not isinstance(reference, Statistics):
            self.warnings += self.extractor.unseen(*reference.images.shape[1:])
        if isinstance(reference, Statistics):
            check_same_features(reference, self.extractor)
            g = reference.gaussian
            self.reference = Reference(reference.source, None, g.n, g, reference.resize)
        else:
            self.reference, cache_warning = load_reference(reference, self.extractor, progress=progress)
            self.warnings += [] if cache_warning is None else [cache_warning]

    def _check(self, row: Metric) -> None:
        """ConfigError where what a metric needs is not there."""
        if "pixels" in row.needs and self.reference is not None:
            self.reference.pictures()
        if not row.compares and not {"classifier", "clip_features"} & set(row.needs):
            return
        if self.reference is None or (self.extractor is None and row.looks_at_features):
            alone = ", ".join(name for name, row in metrics().items() if not (row.compares or row.probe))
            raise ConfigError(
                f"metric '{row.name}' cannot be measured without a reference: choose {alone}, rewards, or several"
            )
        if "images" in row.needs:
            self.reference.sample()
        images, extractor = self.reference.images, self.extractor
        if extractor is None:  # of a metric that looks at pixels
            return
        if "labels" in row.needs and (images is None or images.labels is None):
            raise ConfigError(f"metric '{row.name}' needs class labels of the images and of the reference")
        blank = torch.zeros(1, extractor.dim, dtype=torch.float64)
        if "classifier" in row.needs and extractor.probabilities(blank) is None:
            raise ConfigError(
                f"'{extractor.id}' is no classifier: metric '{row.name}' needs fashion_mnist or inception"
            )
        if "clip_features" in row.needs and getattr(extractor, "kind", None) != "clip":
            raise ConfigError(
                f"metric '{row.name}' is defined on CLIP features, not on '{extractor.id}': use clip[:MODEL]"
            )

    def _clip_model(self, name: str | None) -> HubFeatures:
        if name is None and isinstance(self.extractor, HubFeatures) and self.extractor.kind == "clip":
            return self.extractor
        return HubFeatures(name or DEFAULTS["clip"], self.device)

    def __call__(
        self,
        batches: Batches,
        *,
        labels: Tensor | None = None,
        texts: Sequence[str] | None = None,
        num_images: int | None = None,
        picture: str | Path | None = None,
    ) -> dict[str, Any]:
        """Measure images; returns `{"metrics": {...}, "figures": {...}, "protocol": {...}, "warnings": [...],
        "seconds": ...}`, where `figures` holds the label of each number and its better direction.

        Args:
            batches: uint8 `(N, C, H, W)`, or batches of it, or of `(images, labels)`, such as `generate` yields.
            labels: int64 `(N,)`, for `per_class_fid`.
            texts: for `clip` and rewards; image i is scored with text i mod len(texts).
            num_images: measure the first so many; None: all.
            picture: where `neighbours` writes its PNG.

        A metric that these images cannot have, as that of a class with one image, stands under `failed` with why.

        Raises:
            DataError: too few images, images of several sizes without a mode, features that are not finite; no metric
                that can be measured.
        """
        start = time.perf_counter()
        check_texts(self.metrics, texts)
        looked_at = self._pass(labelled(batches, labels, num_images), texts, picture is not None)
        result = processes.lead(lambda: self._result(*looked_at, texts, picture))
        return result | {"seconds": round(time.perf_counter() - start, 2)}

    def _result(
        self,
        generated: Generated,
        resizes: list[str],
        shape: torch.Size,
        texts: Sequence[str] | None,
        picture: str | Path | None,
    ) -> dict[str, Any]:
        """What is known of the images, once they have been looked at."""
        context = Context(
            generated, self.reference, self.extractor, self.backend, self.seed, self.floor, self.resamples,
            picture=None if picture is None else Path(picture),
            warnings=self._warnings(generated, resizes, shape),
            floors=self._floors,
            real_scores=self._real_scores,
            real_looks=self._real_looks,
        )  # fmt: skip
        entries, failed = self._entries(context)
        result = {
            "metrics": entries,
            "figures": described(self.metrics),
            "protocol": self._protocol(generated, resizes, texts),
            "warnings": context.warnings,
            **({"failed": failed} if failed else {}),
        }
        context.warnings += undefined(result)
        return result

    def _entries(self, context: Context) -> tuple[dict[str, Any], dict[str, str]]:
        """The entry of each metric; and of those that these images cannot have, why not: the others are not lost.

        DataError where none can be measured.
        """
        entries: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for row in self.metrics:
            try:
                entries[row.name] = row.measure(context)
            except DataError as error:
                failed[row.name] = str(error)
        entries |= {name: context.mean_score(name) for name in self.scores.rewards}
        if failed and not entries:
            raise DataError(next(iter(failed.values())))
        return entries, failed

    def _pass(
        self, pairs: Iterator[tuple[Tensor, Tensor | None]], texts: Sequence[str] | None, pictures: bool
    ) -> tuple[Generated, list[str], torch.Size]:
        """One streaming pass: moments of all images, features of at most `sample_rows` of them, and scores.

        Several processes look at the batches in turn, and all know the whole.
        """
        extractor = self.extractor
        moments = None if extractor is None else Moments(extractor.dim)
        sample = None if extractor is None else StreamSample(sample_rows(extractor.dim))
        size = large_batch(self.device) if extractor is None else extractor.batch_size
        labels: list[Tensor | None] = []
        shapes: list[torch.Size] = []
        scores = []

        def parts() -> Iterator[tuple[int, Tensor, Tensor | None]]:
            done = 0
            for images, own in rebatched(pairs, size, extractor is None or extractor.mode is not None):
                labels.append(own)
                shapes.append(images.shape)
                yield done, images, own
                done += len(images)

        def look(part: tuple[int, Tensor, Tensor | None]) -> dict[str, Tensor]:
            first, images, own = part
            chosen = None if not texts else [texts[(first + i) % len(texts)] for i in range(len(images))]
            found = {f"{SCORE}{name}": values for name, values in self.scores(images, chosen, own).items()}
            found |= {f"{SCORE}{name}": values for name, values in self.looks(images).items()}
            if extractor is not None:
                found["features"] = extractor(images)
                found |= {"thumbnails": thumbnails(images)} if pictures else {}
            return found

        for found in processes.in_turn(look, parts()):
            scores.append({name.removeprefix(SCORE): v for name, v in found.items() if name.startswith(SCORE)})
            if moments is not None and sample is not None:
                moments.update(found["features"])
                sample.add(*(found[name] for name in ("features", "thumbnails") if name in found))
        done = sum(shape[0] for shape in shapes)
        if not done:
            raise DataError("there are no images to measure: give some")
        resizes = {} if extractor is None else {extractor.resize_used(*shape[2:]): None for shape in shapes}
        known = [x for x in labels if x is not None]
        nothing = torch.arange(done), torch.empty(done, 0, dtype=torch.float64)
        index, features, *small = nothing if sample is None else sample.rows()
        generated = Generated(
            done,
            NO_FEATURES if moments is None else moments.gaussian(),
            features,
            torch.cat(known)[index] if len(known) == len(labels) else None,
            small[0] if small else None,
            joined(scores),
        )
        return generated, list(resizes), shapes[-1][1:]

    def _real_scores(self, count: int) -> dict[str, float]:
        if not self.floor or self.reference is None or self.reference.images is None:
            return {}
        if (key := ("scores", count)) not in self._floors:
            size = large_batch(self.device) if self.extractor is None else self.extractor.batch_size
            self._floors[key] = self.scores.of_real(self.reference.images, count, size)
        return self._floors[key]

    def _real_looks(self) -> dict[str, Tensor]:
        if (key := ("looks",)) not in self._floors:
            assert self.reference is not None
            self._floors[key] = self.looks.of_real(self.reference.pictures())
        return self._floors[key]

    def _warnings(self, generated: Generated, resizes: list[str], shape: torch.Size) -> list[str]:
        warnings = list(self.warnings)
        if self.reference is None:
            return warnings
        if self.extractor is not None:
            warnings += [text for text in self.extractor.unseen(*shape) if text not in warnings]
            warnings += [f"generated images: {problem}" for problem in generated.gaussian.problems()]
            warnings += [f"reference: {problem}" for problem in self.reference.gaussian.problems()]
        images = self.reference.images
        if images is not None and images.images.shape[1:] != shape:
            ours, theirs = ("x".join(map(str, s)) for s in (shape, images.images.shape[1:]))
            warnings.append(f"the images are {ours} (C x H x W), the reference is {theirs}: a difference in itself")
        if self.extractor is not None and self.reference.resize is not None and resizes != [self.reference.resize]:
            warnings.append(
                f"resize is {', '.join(resizes)} for the images and {self.reference.resize} for the reference"
            )
        return warnings

    def _protocol(self, generated: Generated, resizes: list[str], texts: Sequence[str] | None) -> dict[str, Any]:
        protocol: dict[str, Any] = {"num_images": generated.n}
        if self.reference is not None:
            protocol["reference"] = {
                "name": self.reference.name,
                "fingerprint": self.reference.fingerprint,
                "num_images": self.reference.n,
                "resize": self.reference.resize,
            }
        if self.reference is not None and self.extractor is not None:
            protocol |= {
                "features": {"id": self.extractor.id, "sha256": self.extractor.sha256, "dim": self.extractor.dim},
                "resize": "+".join(resizes),
                "backend": self.backend_version,
                "seed": self.seed,
            }
        return protocol | self.scores.protocol(texts)


def _without_features(reference: ImageSet | Statistics) -> Reference:
    """What stands beside scores of single images: real ones to score too, where there are some."""
    if isinstance(reference, Statistics):
        return Reference(reference.source, None, reference.gaussian.n, reference.gaussian, reference.resize)
    return Reference(reference.name, reference.fingerprint, len(reference), NO_FEATURES, None, images=reference)


def _known(names: Sequence[str], rewards: Sequence[Reward]) -> tuple[Metric, ...]:
    """The metrics of these names; ConfigError for one that is not known, and where nothing is to be measured."""
    if not names and not rewards:
        raise ConfigError(f"no metric is asked for: choose of {', '.join(metrics())}")
    rows = tuple(metric(name) for name in names)
    for row in rows:
        if any(other.name == row.name and other is not row for other in rows):
            raise ConfigError(f"two metrics of different files are called '{row.name}'; give each a name of its own")
    if of_models := [row.name for row in rows if row.probe is not None]:
        raise ConfigError(f"metric '{of_models[0]}' is of a model, not of images: evaluate(model=...) measures it")
    return rows


def check_texts(asked: Sequence[Metric], texts: Sequence[str] | None) -> None:
    """ConfigError where a metric needs texts and there are none; rewards, which may read labels, check themselves."""
    for row in asked:
        if "texts" in row.needs and not texts:
            raise ConfigError(
                f"metric '{row.name}' needs a text for each image: give images with captions, --prompt or --prompts"
            )


def evaluate_images(
    images: Batches,
    reference: ImageSet | Statistics | None = None,
    *,
    metrics: Sequence[str] = ("fid",),
    extractor: str | FeatureExtractor | None = None,
    labels: Tensor | None = None,
    texts: Sequence[str] | None = None,
    num_images: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Metrics of generated images, once; arguments, result and errors are those of `Evaluator` and of calling it.

    >>> from diffdistill.data import load_images
    >>> emoji = load_images("builtin:emoji", split="held_out")
    >>> result = evaluate_images(emoji.images, emoji, metrics=["fid"], extractor="pixels", resamples=0, floor=False)
    >>> round(result["metrics"]["fid"]["value"], 6), result["protocol"]["features"]["id"]
    (0.0, 'pixels-3x16x16')
    """
    evaluator = Evaluator(reference, extractor, metrics, **settings)
    return evaluator(images, labels=labels, texts=texts, num_images=num_images)
