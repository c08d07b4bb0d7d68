"""What a model is asked to draw, and how strongly: class labels or prompts, and guidance."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

from diffdistill.data.prompts import Prompt, problem_of
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError


def labels_for(model: Denoiser, class_labels: Sequence[int] | None) -> tuple[int, ...] | None:
    """Labels to draw in turn: those given, else every class; None for a model without classes."""
    count = None if model.prompts is not None else model.num_classes
    if class_labels is None:
        return None if count is None else tuple(range(count))
    if model.prompts is not None:
        raise ConfigError("this model draws texts and takes no class labels; give --prompt TEXT or --prompts FILE")
    if count is None:
        raise ConfigError("this model is unconditional, it takes no class labels; leave them out")
    wrong = [label for label in class_labels if not 0 <= label < count]
    if wrong or not class_labels:
        given = f"class label {wrong[0]} is out of range" if wrong else "the list of class labels is empty"
        raise ConfigError(f"{given}; this model has classes 0 to {count - 1}")
    return tuple(class_labels)


def prompts_for(
    model: Denoiser, prompts: Sequence[str | Prompt] | None, negative: str | None, guidance: float
) -> tuple[Prompt, ...] | None:
    """Prompts to draw in turn, each with the negative one that acts on it; None for a model that reads no text.

    A prompt's own negative text comes before `negative`. Without guidance, or where the network is told the scale of
    it, neither acts: the one that was given to the call is refused, those of a file are left out, so that teacher and
    student can draw the same file.
    """
    if model.prompts is None:
        if prompts is not None or negative is not None:
            classes = model.num_classes
            what = "draws no classes either" if classes is None else f"has classes 0 to {classes - 1} (--class-labels)"
            raise ConfigError(f"prompts need a text-to-image model, and this model {what}; leave the prompt out")
        return None
    if not prompts:
        raise ConfigError("this model draws texts; give --prompt TEXT or --prompts FILE")
    told = model.adapter.embeds_guidance
    if negative is not None and (guidance == 1 or told):
        more = "" if model.role == "student" or told else ", or set a guidance scale other than 1"
        raise ConfigError(
            f"a negative prompt acts through the second pass of guidance, and here is none; leave it out{more}"
        )
    found = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    for text in [prompt.text for prompt in found] + ([] if not negative else [negative]):
        problem = problem_of(text)
        if problem is not None:
            raise ConfigError(f"the prompt {text!r} {problem}; write a text")
    if guidance == 1 or told:
        return tuple(replace(prompt, negative=None) for prompt in found)
    return tuple(prompt if prompt.negative is not None else replace(prompt, negative=negative) for prompt in found)


def guidance_for(model: Denoiser, given: float | None, labels: tuple[int, ...] | None) -> float:
    """The guidance scale: of a student 1, else the one given; else 1, or what a stock text-to-image pipeline takes."""
    if model.role == "student":
        if given not in (None, 1.0):
            raise ConfigError("a student has its teacher's guidance built in; leave out the guidance scale")
        return 1.0
    if model.prompts is not None:
        return _usual_guidance(model) if given is None else float(given)
    guidance = 1.0 if given is None else float(given)
    if guidance != 1.0 and (model.null_class is None or labels is None):
        raise ConfigError(
            f"guidance scale {guidance:g} needs a model with a null class (trained with class_dropout); leave it out"
        )
    return guidance


def _usual_guidance(model: Denoiser) -> float:
    """What diffdistill.json names, else the default of the call of the stock pipeline."""
    named = model.metadata.get("guidance_scale")
    call = inspect.signature(type(model.adapter.pipeline).__call__)
    return float(call.parameters["guidance_scale"].default if named is None else named)
