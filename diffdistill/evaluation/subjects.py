"""What the command line evaluates: a set of images on disk, or a model that is sampled while it is measured."""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.formats import open_source
from diffdistill.data.pixels import decode
from diffdistill.data.prompts import Prompt, digest_of, given_prompts, spread
from diffdistill.data.source import Source
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.sampling.generate import pick_device, plan_sampling, run_plan

MODEL_IMAGES = 5000
CORRECTIONS = ("epsilon_scaling", "time_shift_sampler", "calibration")
SAMPLING = ("steps", "class_labels", "negative_prompt", "guidance_scale", "sampler", *CORRECTIONS, "attention")
Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Subject:
    """Images to come, `count` of them, and what the result says about them."""

    name: str
    count: int
    batches: Iterator[Pair]
    texts: Sequence[str] | None
    about: dict[str, Any]


def subjects(args: Namespace) -> list[Callable[[Sequence[str] | None], Subject]]:
    """One subject for `--images`, one for each `--model`; models are checked now and opened when their turn comes.

    Each is opened with the captions of the reference, which a text-to-image model draws where no prompts are given.
    Raises what reading the prompts raises, ConfigError for flags that do not fit, CheckpointError for a wrong model.
    """
    prompts = given_prompts(args.prompt, args.prompts)
    if args.images is not None:
        given = [f"--{name.replace('_', '-')}" for name in SAMPLING if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"{given[0]} goes with --model: the images of --images are there already")
        images = image_subject(args.images, args.num_images, prompts)
        return [lambda _captions: images]
    named = [name_and_steps(given, args.steps) for given in args.model]
    for name, _ in named:
        locate(name)
    return [partial(model_subject, name, steps, args, prompts) for name, steps in named]


def name_and_steps(given: str, steps: int | None) -> tuple[str, int | None]:
    """`MODEL@K` means K steps, so that one call compares several numbers of steps."""
    found = re.fullmatch(r"(.+)@(\d+)", given)
    return (found[1], int(found[2])) if found and not Path(given).exists() else (given, steps)


def image_subject(data: str, limit: int | None, prompts: Sequence[Prompt] | None) -> Subject:
    """Images on disk, decoded one at a time: a set of any length, and of mixed sizes, can be measured."""
    source = open_source(data, "train")
    if source.count == 0:
        raise DataError(f"{data} holds no images")
    if limit is not None and limit > source.count:
        raise DataError(f"{data} has {source.count} images, but {limit} were asked for: lower --num-images")
    texts = source.texts if prompts is None else [prompt.text for prompt in prompts]
    return Subject(data, limit or source.count, _decoded(source), texts, {"images": data})


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
    name: str,
    steps: int | None,
    args: Namespace,
    prompts: Sequence[Prompt] | None,
    captions: Sequence[str] | None = None,
) -> Subject:
    """Samples of a model: class-balanced unless labels are given; of a text-to-image model an image of each prompt.

    captions: drawn where there are no prompts; of fewer images than captions, evenly spaced ones.
    """
    model = Denoiser.from_pretrained(name, pick_device(args.device))
    attention = set_attention(model.network, args.attention or "auto")
    count = args.num_images or MODEL_IMAGES
    if model.draws_texts and prompts is None:
        prompts = _of_reference(name, captions, count)
    if model.draws_texts and args.num_images is None:
        count = min(MODEL_IMAGES, len(prompts or ()))
        if count < 2:
            raise ConfigError("one prompt makes one image, and metrics are of several; give --num-images N")
    wishes = {name: getattr(args, name) for name in ("sampler", "class_labels", "guidance_scale", *CORRECTIONS)}
    wishes |= {"prompts": prompts, "negative_prompt": args.negative_prompt}
    plan = plan_sampling(model, steps=steps, **wishes)
    about = {
        "model": name,
        "model_sha256": weights_digest(locate(name)),
        "sampler": plan.sampler,
        "steps": plan.steps,
        "evaluations": plan.evaluations,
        "guidance_scale": plan.guidance_scale,
        "corrections": plan.corrections.record(),
        "class_labels": None if plan.class_labels is None else list(plan.class_labels),
        "prompts": None if plan.prompts is None else {"count": len(plan.prompts), "sha256": digest_of(plan.prompts)},
        "seed": args.seed,
        "attention": str(attention),
    }
    batches = run_plan(model, plan, num_images=count, seed=args.seed, batch_size=args.batch_size)
    texts = None if plan.prompts is None else [prompt.text for prompt in plan.prompts]
    return Subject(name, count, batches, texts, about)


def _of_reference(name: str, captions: Sequence[str] | None, count: int) -> list[Prompt]:
    if captions is None:
        raise ConfigError(f"'{name}' draws texts, and no captions of a reference are there; give --prompts FILE")
    return [Prompt(caption) for caption in spread(captions, count)]
