"""`evaluate`: metrics of images or models against a reference, from Python and from the command line.

`json=FILE` holds the result of one subject, or `{"models": [...]}` for several. An existing FILE is replaced only if
it holds the answer to the same request; any other file is left alone.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from diffdistill import processes
from diffdistill.data import ImageSet, load_images
from diffdistill.devices import pick_device
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.evaluator import Evaluator, check_texts
from diffdistill.evaluation.metrics import check_enough, metric, too_few
from diffdistill.evaluation.metrics.two_halves import drawn_in_vain
from diffdistill.evaluation.plot import check_plot, plot_evaluations
from diffdistill.evaluation.probes import check_reference, joined, probe_of, probed
from diffdistill.evaluation.statistics import Statistics, is_statistics, load_statistics
from diffdistill.evaluation.subjects import Drawing, Pair, Subject, image_subject, model_subjects
from diffdistill.evaluation.table import Evaluation
from diffdistill.files import behind_links
from diffdistill.outputs import check_output, is_stdout, write_answer
from diffdistill.rewards import Reward, load_reward

DTYPES = ("dtype", "vae_dtype")  # of a subject that is a model, in its protocol too
# What requests meant that were recorded before a precision, a signal leak or another half could be asked for.
BEFORE = {"dtype": "float32", "signal_leak": None, "other_half": None}

# Captions where no image is drawn: what two halves are told of the held-out images, and lack, they say themselves.
DRAWN_OF_NONE = ("none", "none")


@dataclass(frozen=True, kw_only=True)
class Request(Drawing):
    """What is to be evaluated, and how; the flags of `diffdistill evaluate` are these.

    images: DATA to judge, or uint8 images `(N, C, H, W)`. model: one or several models to sample instead, `MODEL@K`
    for K steps. other_half: a model to compare it with, for the metric two_halves. reference: DATA, or a statistics
    file, to compare with; split: of it. metrics: names of `diffdistill.evaluation.metrics`; None: fid, or `rewards`
    alone where there is no reference. num_images: None: all of `images`, 5000 of a model. features, backend, clip,
    rewards, seed: as of `Evaluator`. fid_mode: the resize, `tf` or `clean`. neighbours: where to write the picture of
    nearest training images; plot: of FID against evaluations; json: the result. The rest is of `Drawing`: what models
    draw.
    """

    images: str | Path | Tensor | None = None
    model: str | Sequence[str] | None = None
    other_half: str | None = None
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
        "images", "model", "other_half", "reference", "split", "metrics", "num_images", "features", "clip", "rewards",
        "backend", "fid_mode", "seed", "steps", "class_labels", "prompt", "prompts", "negative_prompt",
        "guidance_scale", "sampler", "epsilon_scaling", "time_shift_sampler", "calibration", "signal_leak", "dtype",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if (self.images is None) == (self.model is None):
            raise ConfigError("give images or a model to evaluate, one of them")
        if self.metrics is None:
            alone = bool(self.rewards) and self.reference is None
            object.__setattr__(self, "metrics", () if alone else ("fid",))
        if self.clip is not None and not any("clip" in metric(name).needs for name in self.metrics or ()):
            raise ConfigError("--clip names the CLIP of metric 'clip', which is not asked for: add it to --metrics")
        self._check_models()
        self._check_pictures()

    def _check_models(self) -> None:
        """ConfigError for metrics of models where images are judged, and for another half that is not asked for."""
        rows = [metric(name) for name in self.metrics or ()]
        of_models = [row.name for row in rows if row.probe is not None]
        if of_models and self.model is None:
            raise ConfigError(f"metric '{of_models[0]}' is of a model, which makes images for it: give --model MODEL")
        halves = [row.name for row in rows if "other_half" in row.needs]
        if halves and self.other_half is None:
            raise ConfigError(
                f"metric '{halves[0]}' compares the model with one of other images: give --other-half MODEL, or leave "
                f"it out"
            )
        alone = halves and len(halves) == len(rows) and not self.rewards
        if alone and (why := drawn_in_vain(halves[0], self, self.models)) is not None:
            raise ConfigError(why)
        if self.other_half is not None and not halves:
            raise ConfigError("--other-half is of metric 'two_halves', which is not asked for: add it to --metrics")

    def _check_pictures(self) -> None:
        """ConfigError for pictures of what is not measured, or of several models in one file."""
        if self.plot is not None and "fid" not in (self.metrics or ()):
            raise ConfigError("--plot draws the metric fid, which is not asked for: add it to --metrics")
        if self.plot is not None and self.model is None:
            raise ConfigError("--plot draws FID against evaluations of models: give --model, or leave it out")
        if self.neighbours is not None and "neighbours" not in (self.metrics or ()):
            raise ConfigError(
                "--neighbours is the picture of metric 'neighbours', which is not asked for: add it to --metrics"
            )
        if self.neighbours is not None and len(self.models) > 1:
            raise ConfigError("--neighbours is one picture, and there are several models: evaluate them one by one")

    def record(self) -> dict[str, Any]:
        """What decides the numbers, as JSON."""
        record: dict[str, Any] = {key: getattr(self, key) for key in self.DECIDES}
        if isinstance(self.images, Tensor):
            record["images"] = f"{tuple(self.images.shape)} images"
        elif self.images is not None:
            record["images"] = str(self.images)
        record["model"] = None if self.model is None else self.models
        record["dtype"] = self.dtype or "float32"
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
    return answered(request or Request(**settings), lambda _: None)


@processes.together()
def answered(request: Request, show: Callable[[list[dict[str, Any]]], None]) -> dict[str, Any]:
    """The answer, written where the request says and shown, before anything that can fail once it is measured.

    Where a later one of several models fails, what there is so far is written and shown all the same. Several
    processes draw and look at images in turn; all have the answer, the first one writes and shows.
    """
    results: list[dict[str, Any]] = []
    try:
        for result in measured(request):
            results.append(result)
    finally:
        if results and processes.leader():
            _kept(request, results, show)
    plotted = request.plot is not None and all("fid" in result["metrics"] for result in results)
    if request.plot is not None and plotted and processes.leader():
        plot_evaluations(results, request.plot)
    for result in results:
        for name, sentence in result.get("failed", {}).items():
            raise processes.together_told(DataError(f"metric '{name}' is not measured, the others are: {sentence}"))
    return answer_of(request, results)


def _kept(request: Request, results: list[dict[str, Any]], show: Callable[[list[dict[str, Any]]], None]) -> None:
    try:
        if request.json is not None:
            write_answer(request.json, answer_of(request, results))
    finally:
        show(results)


def answer_of(request: Request, results: list[dict[str, Any]]) -> Evaluation:
    """What `json` holds: the result of one subject, or `models`, a list, of several, as far as they are measured."""
    several = len(request.models) > 1
    return Evaluation({"request": request.record(), **({"models": results} if several else results[0])})


def measured(request: Request) -> Iterator[dict[str, Any]]:
    """The results: one for images, or one for each model. A wrong request is refused before anything is computed."""
    processes.lead(lambda: check_outputs(request))
    if request.images is not None:
        subjects = [image_subject(request.images, request.num_images, request)]
        subject = subjects[0](None)
        check_texts([metric(name) for name in request.metrics or ()], subject.texts)
        if too_few(request.metrics or (), subject.count):
            for _ in subject.batches:  # one that is damaged is told first
                pass
        check_enough(request.metrics or (), subject.count, subject.name)
    else:
        if request.num_images is not None and (need := too_few(request.metrics or (), request.num_images)):
            raise ConfigError(
                f"--num-images is {request.num_images}, and {need}: raise it, or leave it out of --metrics"
            )
        subjects = model_subjects(request.models, request.num_images, request)
    rewards = [load_reward(name) for name in request.rewards or ()]
    reference = None if request.reference is None else read_reference(request.reference, request.split)
    rows = [metric(name) for name in request.metrics or ()]
    of_models = [row for row in rows if row.probe is not None]
    check_reference(of_models, reference)
    evaluator = evaluator_for(request, reference, [row.name for row in rows if row.probe is None], rewards)
    captions = reference.texts if isinstance(reference, ImageSet) else None
    if evaluator is None and all("other_half" in row.needs for row in rows):
        captions = captions or DRAWN_OF_NONE
    by_class = isinstance(reference, ImageSet) and any(
        "labels" in metric(name).needs for name in request.metrics or ()
    )
    for open_subject in subjects:
        subject = open_subject(captions)
        if by_class:
            assert isinstance(reference, ImageSet)
            subject = subject.by_names(reference)
        elif isinstance(reference, ImageSet):
            subject = subject.beside(reference)
        more = None
        if of_models:  # first: what these refuse, as halves that overlap, is refused before images are drawn
            held_out = reference if isinstance(reference, ImageSet) else None
            probe = probe_of(subject, request, request.num_images, held_out, request.other_half)
            more = probed(of_models, probe)
        result = None if evaluator is None else measure(evaluator, subject, request.neighbours)
        yield {"subject": subject.about} | joined(result, more)


def evaluator_for(
    request: Request, reference: ImageSet | Statistics | None, names: Sequence[str], rewards: Sequence[Reward]
) -> Evaluator | None:
    """What measures images; None where a model alone is asked about."""
    if not names and not rewards:
        return None
    return Evaluator(
        reference,
        request.features,
        names,
        backend=request.backend,
        mode=request.fid_mode,
        seed=request.seed,
        device=pick_device(request.device),
        clip_model=request.clip,
        rewards=rewards,
        progress=True,
    )


def measure(evaluator: Evaluator, subject: Subject, picture: str | Path | None = None) -> dict[str, Any]:
    """The result of one subject, with what it is."""
    with tqdm(total=subject.count, desc=subject.name[-30:], unit="image", leave=False) as bar:

        def counted() -> Iterator[Pair]:
            for images, labels in subject.batches:
                yield images, labels
                bar.update(len(images))

        result = evaluator(counted(), texts=subject.texts, num_images=subject.count, picture=picture)
    result["warnings"] = [*subject.warnings, *result["warnings"]]
    result["protocol"] |= {key: subject.about[key] for key in DTYPES if key in subject.about}
    return {"subject": subject.about, **result}


def read_reference(data: str, split: str) -> ImageSet | Statistics:
    """Images of any DATA, or a statistics file."""
    if not is_statistics(data):
        return load_images(data, split=split, keep="auto")
    if split != "train":
        raise ConfigError(f"{data} is a statistics file, which has no split '{split}'; leave --split out")
    return load_statistics(data)


def check_outputs(request: Request) -> None:
    """ConfigError where a file to write cannot be, or holds anything but the answer to the same request."""
    record = request.record()
    again = False
    if request.json is not None:
        check_output(request.json, "--json", lambda content: BEFORE | content["request"] == record)
        again = behind_links(Path(request.json)).is_file() and not is_stdout(request.json)
    for flag, file in (("--plot", request.plot), ("--neighbours", request.neighbours)):
        if file is None:
            continue
        if not (again and Path(file).is_file()):  # the pictures of the same request are made again, as its answer is
            check_output(file, flag)
    if request.plot is not None:
        check_plot(request.plot)
