"""What is evaluated: a set of images, or a model that is sampled while it is measured."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.formats import open_source
from diffdistill.data.looking import looking, say
from diffdistill.data.pixels import decode
from diffdistill.data.prompts import Prompt, digest_of, given_prompts, spread
from diffdistill.data.source import Source
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.request import SamplingRequest
from diffdistill.sampling.generate import pick_device, run_plan
from diffdistill.sampling.plan import plan_sampling, request_of

MODEL_IMAGES = 5000
Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a model is sampled: the flags that `sample` has too. None: the model's own choice.

    steps: sampling steps. seed: image i depends on it and on i alone. batch_size: changes no image. class_labels: in
    turn. prompt, prompts: one text, or a file of texts in turn. sampler: a name. epsilon_scaling, time_shift_sampler,
    calibration: corrections, as text of the flags. attention: a kernel. device: where networks run.
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
    attention: str | None = None
    device: str | None = None

    # Settings that mean nothing for images that exist already.
    OF_MODELS = (
        "steps", "class_labels", "negative_prompt", "guidance_scale", "sampler", "epsilon_scaling",
        "time_shift_sampler", "calibration", "attention",
    )  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What is measured: `count` images, produced while they are measured, and their description in the result."""

    name: str
    count: int
    batches: Iterator[Pair]
    texts: Sequence[str] | None
    about: dict[str, Any]
    class_names: tuple[str, ...] | None = None

    def by_names(self, classes: tuple[str, ...] | None) -> "Subject":
        """The same with labels that count the named classes of a reference, where both have names of classes.

        DataError for a class that the reference has not.
        """
        if classes is None or self.class_names is None or classes == self.class_names:
            return self
        drawn = self.about.get("class_labels") or range(len(self.class_names))  # of a model
        missing = [self.class_names[label] for label in drawn if self.class_names[label] not in classes]
        if missing:
            raise DataError(
                f"{self.name} has the class {missing[0]!r}, and the reference has {', '.join(classes):.200}: call "
                f"the classes alike, or leave per_class_fid out"
            )
        place = torch.tensor([classes.index(name) if name in classes else -1 for name in self.class_names])
        batches = ((images, None if labels is None else place[labels]) for images, labels in self.batches)
        return replace(self, batches=batches, class_names=classes)


OpenSubject = Callable[[Sequence[str] | None], Subject]
"""Called with the captions of the reference, which a text-to-image model draws where no prompts are given."""


def image_subject(images: str | Path | Tensor, limit: int | None, drawing: Drawing) -> OpenSubject:
    """A set of images, decoded one at a time, so that it may be of any length and of mixed sizes.

    Raises ConfigError for settings of models, DataError where there are no images, or too few.
    """
    prompts = given_prompts(drawing.prompt, drawing.prompts)
    given = [f"--{name.replace('_', '-')}" for name in Drawing.OF_MODELS if getattr(drawing, name) is not None]
    if given:
        raise ConfigError(f"{given[0]} goes with --model: the images of --images are there already")
    about: dict[str, Any] = {}
    if isinstance(images, Tensor):
        name, count, texts, classes = f"{len(images)} images", len(images), None, None
        batches: Iterator[Pair] = ((part, None) for part in images.split(1000))
    else:
        name = str(images)
        with looking(goes_on=False) as look:
            source = open_source(name, "train")
        if len(look.splits) > 1 and look.split is not None:
            say(f"{name} has the splits {', '.join(look.splits)}: the images of {look.split!r} are measured")
            about["split"] = look.split
        count, texts, batches, classes = source.count, source.texts, _decoded(source), source.class_names
    if count == 0:
        raise DataError(f"{name} holds no images")
    if limit is not None and limit > count:
        raise DataError(f"{name} has {count} images, but {limit} were asked for: lower --num-images")
    texts = texts if prompts is None else tuple(prompt.text for prompt in prompts)
    subject = Subject(name, limit or count, batches, texts, {"images": name} | about, classes)
    return lambda _captions: subject


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
    match = re.fullmatch(r"(.+)@(\d+)", given)
    return (match[1], int(match[2])) if match and not Path(given).exists() else (given, steps)


def _decoded(source: Source) -> Iterator[Pair]:
    for i, image in enumerate(_arrays(source)):
        label = None if source.labels is None else torch.from_numpy(np.asarray(source.labels[i : i + 1]))
        yield torch.from_numpy(image.transpose(2, 0, 1).copy())[None], label


def _arrays(source: Source) -> Iterator[np.ndarray]:
    if isinstance(source.images, np.ndarray):
        yield from source.images
    else:
        yield from (decode(data, name) for name, data in islice(source.images, source.count))


def model_subject(
    name: str, request: SamplingRequest, num_images: int | None, drawing: Drawing, captions: Sequence[str] | None
) -> Subject:
    """Samples of a model: class-balanced unless labels are given; of a text-to-image model an image of each prompt.

    captions: drawn where the request has no prompts; of fewer images than captions, evenly spaced ones.
    """
    model = Denoiser.from_pretrained(name, pick_device(drawing.device))
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
        "class_labels": None if drawn.class_labels is None else list(drawn.class_labels),
        "prompts": None if prompts is None else {"count": len(prompts), "sha256": digest_of(prompts)},
        "seed": drawing.seed,
        "attention": str(attention),
    }
    batches = run_plan(model, plan, num_images=count, seed=drawing.seed, batch_size=drawing.batch_size)
    texts = None if prompts is None else [prompt.text for prompt in prompts]
    names = model.metadata.get("class_names")
    return Subject(name, count, batches, texts, about, None if names is None else tuple(names))


def _of_reference(name: str, captions: Sequence[str] | None, count: int) -> list[Prompt]:
    if captions is None:
        raise ConfigError(f"'{name}' draws texts, and no captions of a reference are there; give --prompts FILE")
    return [Prompt(caption) for caption in spread(captions, count)]
