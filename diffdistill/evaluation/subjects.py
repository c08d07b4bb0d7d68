"""What is evaluated: a set of images, or a model that is sampled while it is measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.formats import open_source
from diffdistill.data.looking import looking, say
from diffdistill.data.pixels import Lost
from diffdistill.data.prompts import Prompt, digest_of, given_prompts, spread
from diffdistill.data.source import Source, is_picture
from diffdistill.data.workers import in_order
from diffdistill.denoiser import Denoiser
from diffdistill.devices import pick_device
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.captions import captions_of
from diffdistill.evaluation.metrics.two_halves import AT_STEPS
from diffdistill.evaluation.sample import ranks_of
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.classes import class_names
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.request import SamplingRequest
from diffdistill.sampling.generate import run_shared
from diffdistill.sampling.plan import Plan, plan_sampling, request_of

MODEL_IMAGES = 5000
Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a model is sampled: the flags that `sample` has too. None: the model's own choice.

    steps: sampling steps. seed: image i depends on it and on i alone. batch_size: changes no image. class_labels: in
    turn. prompt, prompts: one text, or a file of texts in turn. sampler: a name. epsilon_scaling, time_shift_sampler,
    calibration: corrections, as text of the flags. signal_leak: a file, or auto. attention: a kernel. dtype: what
    models are held and computed in, as of `load_model`; None: float32. device: where networks run.
    """

    steps: int | None = None
    seed: int = 0
    batch_size: int = 64
    class_labels: tuple[int, ...] | None = None
    prompt: str | None = None
    prompts: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    epsilon_scaling: str | None = None
    time_shift_sampler: str | None = None
    calibration: str | None = None
    signal_leak: str | None = None
    attention: str | None = None
    dtype: str | None = None
    device: str | None = None

    # Settings that mean nothing for images that exist already.
    OF_MODELS = (
        "steps", "class_labels", "negative_prompt", "guidance_scale", "sampler", "epsilon_scaling",
        "time_shift_sampler", "calibration", "signal_leak", "attention", "dtype",
    )  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What is measured: `count` images, produced while they are measured, and their description in the result.

    class_names: in the order of the labels, None where the classes have none. classes: the labels that occur.
    warnings: what a reader of the figures must know. trained_on: fingerprint of the data of a model's training.
    sampled: of a model, itself and how it is sampled.
    """

    name: str
    count: int
    batches: Iterator[Pair]
    texts: Sequence[str] | None
    about: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    classes: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    trained_on: str | None = None
    sampled: tuple[Denoiser, Plan] | None = None

    def beside(self, reference: ImageSet) -> "Subject":
        """The same, with a warning where the reference has classes and no image is of them: a figure of the whole set
        is then mostly about what is missing. Classes go by name, or by number where neither side has names.
        """
        theirs, ours = reference.class_names, self.class_names
        if reference.labels is None or not self.classes or (theirs is None) != (ours is None):
            return self
        drawn = {str(label) if ours is None else ours[label] for label in self.classes}
        shown = [str(label) if theirs is None else theirs[label] for label in reference.labels.unique().tolist()]
        absent = [name for name in shown if name not in drawn]
        if not absent:
            return self
        text = (
            f"{self.name} has no image of {len(absent)} of the {len(shown)} classes of {reference.name} "
            f"({', '.join(absent):.100}): every figure counts them as missing"
        )
        return replace(self, warnings=(*self.warnings, text))

    def by_names(self, reference: ImageSet) -> "Subject":
        """The same with labels that count the classes of the reference: by their names, where both have names.

        DataError for a class that the reference has not. Where one side has no names, numbers decide, and that is said
        unless a model learned its numbers from this very reference.
        """
        theirs, ours = reference.class_names, self.class_names
        if theirs == ours or reference.labels is None or self.trained_on == reference.fingerprint:
            return self
        if theirs is None or ours is None:
            who = self.name if ours is None else reference.name
            text = (
                f"{who} has no names of its classes: those of {self.name} and {reference.name} are matched by number"
            )
            return replace(self, warnings=(*self.warnings, text))
        missing = [ours[label] for label in self.classes if ours[label] not in theirs]
        if missing:
            raise DataError(
                f"{self.name} has the class {missing[0]!r}, and the reference has {', '.join(theirs):.200}: call "
                f"the classes alike, or leave per_class_fid out"
            )
        place = torch.tensor([theirs.index(name) if name in theirs else -1 for name in ours])
        batches = ((images, None if labels is None else place[labels]) for images, labels in self.batches)
        return replace(self, batches=batches, class_names=theirs)


OpenSubject = Callable[[Sequence[str] | None], Subject]
"""Called with the captions of the reference, which a text-to-image model draws where no prompts are given."""


def _opened(name: str) -> tuple[Source, str | None]:
    """A set of images, and which of several splits of it is measured, which is said."""
    with looking(goes_on=False) as look:
        source = open_source(name, "train")
    if len(look.splits) < 2 or look.split is None:
        return source, None
    say(f"{name} has the splits {', '.join(look.splits)}: the images of {look.split!r} are measured")
    return source, look.split


def image_subject(images: str | Path | Tensor, limit: int | None, drawing: Drawing) -> OpenSubject:
    """A set of images, decoded one at a time, so that it may be of any length and of mixed sizes.

    Raises ConfigError for settings of models, DataError where there are no images, or too few.
    """
    prompts = given_prompts(drawing.prompt, drawing.prompts)
    given = [f"--{name.replace('_', '-')}" for name in Drawing.OF_MODELS if getattr(drawing, name) is not None]
    if given:
        raise ConfigError(f"{given[0]} goes with --model: the images of --images are there already")
    source, split = (None, None) if isinstance(images, Tensor) else _opened(str(images))
    count = len(images) if isinstance(images, Tensor) else source.count  # type: ignore[union-attr]
    name = str(images) if source is not None else f"{count} images"
    texts = None if source is None else source.texts
    warnings: tuple[str, ...] = ()
    if count == 0:
        raise DataError(f"{name} holds no images")
    if limit is not None and limit > count:
        raise DataError(f"{name} has {count} images, but {limit} were asked for: lower --num-images")
    if prompts is not None:
        file = drawing.prompts or "--prompt"
        names = None if source is None else file_names(name)
        found = captions_of(count, texts, [prompt.text for prompt in prompts], names, file)
        texts, warnings = found.texts, found.warnings
    chosen = some_of(count, limit)
    texts = texts if texts is None or len(chosen) == count else tuple(texts[i] for i in chosen)
    about = {"images": name} | ({} if len(chosen) == count else {"of": count})
    about |= {} if split is None else {"split": split}
    if source is None:
        assert isinstance(images, Tensor)
        plain = Subject(name, len(chosen), ((part, None) for part in images[chosen].split(1000)), texts, about)
        return lambda _captions: replace(plain, warnings=warnings)
    labels = () if source.labels is None else tuple(np.unique(source.labels[chosen]).tolist())
    subject = Subject(
        name, len(chosen), _decoded(source, chosen), texts, about, source.class_names, labels, warnings=warnings
    )
    return lambda _captions: subject


def some_of(count: int, limit: int | None) -> np.ndarray:
    """The places, rising, of `limit` of `count` images at random: the first ones may be of one class; None: of all."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.argsort(ranks_of(np.arange(count)), kind="stable")[:limit])


def file_names(data: str) -> list[str] | None:
    """The names of the files of a folder or a zip, in their order; None for what has no files of images."""
    encoded = open_source(data, "train").images
    if isinstance(encoded, np.ndarray):
        return None
    names: list[str] = []
    for name, _ in encoded:
        if not is_picture(PurePath(PurePath(name).name)):
            return None
        names.append(name)
    return names


def model_subjects(models: Sequence[str], num_images: int | None, drawing: Drawing) -> list[OpenSubject]:
    """Models are located at once, and loaded only when their turn comes.

    Raises what reading the prompts raises, CheckpointError for a model that is not there.
    """
    request = request_of(drawing)
    named = [name_and_steps(given, drawing.steps) for given in models]
    for name, _ in named:
        locate(name)
    return [partial(model_subject, name, replace(request, steps=steps), num_images, drawing) for name, steps in named]


def name_and_steps(given: str, steps: int | None) -> tuple[str, int | None]:
    """`MODEL@K` means K steps, so that one call compares several numbers of steps."""
    match = AT_STEPS.fullmatch(given)
    return (match[1], int(match[2])) if match and not Path(given).exists() else (given, steps)


def _decoded(source: Source, chosen: np.ndarray) -> Iterator[Pair]:
    for i, image in zip(chosen.tolist(), _arrays(source, chosen), strict=False):
        label = None if source.labels is None else torch.from_numpy(np.asarray(source.labels[i : i + 1]))
        yield torch.from_numpy(image.transpose(2, 0, 1).copy())[None], label


def _arrays(source: Source, chosen: np.ndarray) -> Iterator[np.ndarray]:
    if isinstance(source.images, np.ndarray):
        yield from (source.images[i] for i in chosen)
        return
    wanted = set(chosen.tolist())
    entries = (entry for i, entry in enumerate(source.images) if i in wanted)
    yield from (image for _, image in in_order(entries, None, Lost()))


def model_subject(
    name: str, request: SamplingRequest, num_images: int | None, drawing: Drawing, captions: Sequence[str] | None
) -> Subject:
    """Samples of a model: class-balanced unless labels are given; of a text-to-image model an image of each prompt.

    captions: drawn where the request has no prompts; of fewer images than captions, evenly spaced ones.
    """
    model = Denoiser.from_pretrained(name, pick_device(drawing.device), drawing.dtype)
    attention = set_attention(model.network, drawing.attention or "auto")
    count = num_images or MODEL_IMAGES
    if model.draws_texts and request.prompts is None:
        request = replace(request, prompts=_of_reference(name, captions, count))
    if model.draws_texts and num_images is None:
        count = min(MODEL_IMAGES, len(request.prompts or ()))
        if count < 2:
            raise ConfigError("one prompt makes one image, and metrics are of several; give --num-images N")
    plan = plan_sampling(model, request)
    drawn, prompts = plan.conditions, plan.conditions.prompts
    about = {
        "model": name,
        "model_sha256": weights_digest(locate(name)),
        "sampler": plan.sampler,
        "steps": plan.steps,
        "evaluations": plan.evaluations,
        "guidance_scale": drawn.guidance_scale,
        "corrections": plan.corrections.record(),
        "signal_leak": None if plan.leak is None else plan.leak.record(),
        "class_labels": None if drawn.class_labels is None else list(drawn.class_labels),
        "prompts": None if prompts is None else {"count": len(prompts), "sha256": digest_of(prompts)},
        "seed": drawing.seed,
        "attention": str(attention),
        **model.dtypes,
    }
    batches = run_shared(model, plan, num_images=count, seed=drawing.seed, batch_size=drawing.batch_size)
    texts = None if prompts is None else [prompt.text for prompt in prompts]
    labels = tuple(dict.fromkeys((drawn.class_labels or ())[:count]))
    trained_on = (model.metadata.get("data") or {}).get("fingerprint")
    warnings = unshown(count, drawn.class_labels)
    names, sampled = class_names(model.metadata), (model, plan)
    return Subject(name, count, batches, texts, about, names, labels, warnings, trained_on, sampled)


def unshown(count: int, classes: Sequence[int] | None) -> tuple[str, ...]:
    """A warning where a model draws its classes in turn and too few images for all of them."""
    if classes is None or len(classes) <= count:
        return ()
    return (
        f"{count} images of a model of {len(classes)} classes, drawn in turn, are of the first {count} alone: ask for "
        f"{len(classes)} or more, or for some classes (--class-labels)",
    )


def _of_reference(name: str, captions: Sequence[str] | None, count: int) -> list[Prompt]:
    if captions is None:
        raise ConfigError(f"'{name}' draws texts, and no captions of a reference are there; give --prompts FILE")
    return [Prompt(caption) for caption in spread(captions, count)]
