"""`evaluate`: metrics of images or models against a reference, from Python and from the command line.

`json=FILE` holds the result of one subject, or `{"models": [...]}` for several. An existing FILE is replaced only if
it holds the answer to the same request; any other file is left alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from diffdistill.data import ImageSet, load_images
from diffdistill.errors import ConfigError
from diffdistill.evaluation.evaluator import Evaluator, check_texts
from diffdistill.evaluation.metrics import metric
from diffdistill.evaluation.plot import plot_evaluations
from diffdistill.evaluation.statistics import Statistics, is_statistics, load_statistics
from diffdistill.evaluation.subjects import Drawing, Pair, Subject, image_subject, model_subjects
from diffdistill.files import read_json, write_json
from diffdistill.rewards import load_reward
from diffdistill.sampling.generate import pick_device


@dataclass(frozen=True, kw_only=True)
class Request(Drawing):
    """What is to be evaluated, and how; the flags of `diffdistill evaluate` are these.

    images: DATA to judge, or uint8 images `(N, C, H, W)`. model: one or several models to sample instead, `MODEL@K`
    for K steps. reference: DATA, or a statistics file, to compare with; split: of it. metrics: names of
    `diffdistill.evaluation.metrics`; None: fid, or `rewards` alone where there is no reference. num_images: None: all
    of `images`, 5000 of a model. features, backend, clip, rewards, seed: as of `Evaluator`. fid_mode: the resize, `tf`
    or `clean`. neighbours: where to write the picture of nearest training images; plot: of FID against evaluations;
    json: the result. The rest is of `Drawing`: what models draw.
    """

    images: str | Path | Tensor | None = None
    model: str | Sequence[str] | None = None
    reference: str | None = None
    split: str = "train"
    metrics: Sequence[str] | None = None
    num_images: int | None = None
    features: str | None = None
    clip: str | None = None
    rewards: Sequence[str] | None = None
    backend: str = "native"
    fid_mode: str | None = None
    neighbours: str | Path | None = None
    plot: str | Path | None = None
    json: str | Path | None = None

    # What decides the numbers; batch size, device and where to write do not.
    DECIDES = (
        "images", "model", "reference", "split", "metrics", "num_images", "features", "clip", "rewards", "backend",
        "fid_mode", "seed", "steps", "class_labels", "prompt", "prompts", "negative_prompt", "guidance_scale",
        "sampler", "epsilon_scaling", "time_shift_sampler", "calibration",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if (self.images is None) == (self.model is None):
            raise ConfigError("give images or a model to evaluate, one of them")
        if self.metrics is None:
            alone = bool(self.rewards) and self.reference is None
            object.__setattr__(self, "metrics", () if alone else ("fid",))
        if self.clip is not None and not any("clip" in metric(name).needs for name in self.metrics or ()):
            raise ConfigError("--clip names the CLIP of metric 'clip', which is not asked for: add it to --metrics")

    def record(self) -> dict[str, Any]:
        """What decides the numbers, as JSON."""
        record: dict[str, Any] = {key: getattr(self, key) for key in self.DECIDES}
        if isinstance(self.images, Tensor):
            record["images"] = f"{tuple(self.images.shape)} images"
        elif self.images is not None:
            record["images"] = str(self.images)
        record["model"] = None if self.model is None else self.models
        return json.loads(json.dumps(record))

    @property
    def models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else list(self.model or ())


def evaluate(request: Request | None = None, /, **settings: Any) -> dict[str, Any]:
    """Measure images or models: the result of `Evaluator` with `subject` and `request`; `models`, a list, of several.

        evaluate(model="builtin:fashion_mnist_teacher", reference="builtin:fashion_mnist", steps=3, num_images=64)

    The keywords are those of `Request`. Raises the errors of errors.py, ConfigError for a keyword that is not known.

    >>> from diffdistill.data import load_images
    >>> images = load_images("builtin:emoji", split="held_out").images  # uint8 (N, C, H, W)
    >>> result = evaluate(images=images, reference="builtin:emoji", split="held_out", metrics=["fid"])
    >>> round(result["metrics"]["fid"]["value"], 6), result["metrics"]["fid"]["n"]  # real images against themselves
    (0.0, 190)
    """
    known = [field.name for field in fields(Request)]
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(f"evaluate has no setting '{unknown[0]}'; it must be one of {', '.join(known)}")
    request = request or Request(**settings)
    results = measured(request)
    answer = {"request": request.record(), **(results[0] if len(results) == 1 else {"models": results})}
    if request.plot is not None:
        plot_evaluations(results, request.plot)
    if request.json is not None:
        write_json(Path(request.json), answer)
    return answer


def measured(request: Request) -> list[dict[str, Any]]:
    """The results: one for images, or one for each model. A wrong request is refused before anything is computed."""
    if request.json is not None:
        refuse_other(Path(request.json), request.record())
    if request.images is not None:
        subjects = [image_subject(request.images, request.num_images, request)]
        check_texts([metric(name) for name in request.metrics or ()], subjects[0](None).texts)
    else:
        subjects = model_subjects(request.models, request.num_images, request)
    rewards = [load_reward(name) for name in request.rewards or ()]
    reference = None if request.reference is None else read_reference(request.reference, request.split)
    evaluator = Evaluator(
        reference,
        request.features,
        request.metrics or (),
        backend=request.backend,
        mode=request.fid_mode,
        seed=request.seed,
        device=pick_device(request.device),
        clip_model=request.clip,
        rewards=rewards,
        progress=True,
    )
    captions = reference.texts if isinstance(reference, ImageSet) else None
    return [measure(evaluator, open_subject(captions), request.neighbours) for open_subject in subjects]


def measure(evaluator: Evaluator, subject: Subject, picture: str | Path | None = None) -> dict[str, Any]:
    """The result of one subject, with what it is."""
    with tqdm(total=subject.count, desc=subject.name[-30:], unit="image", leave=False) as bar:

        def counted() -> Iterator[Pair]:
            for images, labels in subject.batches:
                yield images, labels
                bar.update(len(images))

        result = evaluator(counted(), texts=subject.texts, num_images=subject.count, picture=picture)
    return {"subject": subject.about, **result}


def read_reference(data: str, split: str) -> ImageSet | Statistics:
    """Images of any DATA, or a statistics file."""
    return load_statistics(data) if is_statistics(data) else load_images(data, split=split)


def refuse_other(target: Path, request: dict[str, Any]) -> None:
    """ConfigError where `target` holds anything but the answer to the same request."""
    if not target.exists():
        if not target.absolute().parent.is_dir():
            raise ConfigError(f"--json {target}: there is no folder {target.absolute().parent}; make it first")
        return
    try:
        answered = read_json(target)["request"]
    except (OSError, ValueError, KeyError, TypeError):
        answered = None
    if answered != request:
        raise ConfigError(f"--json {target} exists and holds something else: delete it or name another file")
