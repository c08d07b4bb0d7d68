"""What the images of a text-to-image model show: prompts in turn, each with what guidance leads away from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.prompts import Prompt, problem_of
from diffdistill.errors import ConfigError
from diffdistill.request import Conditions, SamplingRequest, check_student_guidance


@dataclass(frozen=True)
class PromptConditions(Conditions):
    """Image i has prompts[i mod len]; a prompt with a seed of its own has its noise from that one."""

    prompts: tuple[Prompt, ...] = ()

    def prompt(self, index: int) -> Prompt:
        return self.prompts[index % len(self.prompts)]

    def tensors(self, model: Any, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Numbers in the model's table of prompts, and those of negative prompts where an image has one."""
        prompts = [self.prompt(i) for i in indices]
        negatives = {row: prompt.negative for row, prompt in enumerate(prompts) if prompt.negative is not None}
        # What is encoded here is kept, and a training may take gradients at it, which inference tensors refuse.
        with torch.inference_mode(False), torch.no_grad():
            cond = model.prompts.ids([prompt.text for prompt in prompts])
            if not negatives:
                return cond, None
            null = model.null_condition(cond).clone()
            null[list(negatives)] = model.prompts.ids(list(negatives.values()), negative=True)
            return cond, null

    def place(self, seed: int, index: int) -> tuple[int, int]:
        """Of a prompt with a seed S of its own, S and how often it was drawn before."""
        own = self.prompt(index).seed
        return (seed, index) if own is None else (own, index // len(self.prompts))

    def record(self, index: int) -> dict[str, Any]:
        prompt = self.prompt(index)
        own = {} if prompt.seed is None else {"seed": prompt.seed}
        return {"prompt": prompt.text, "negative_prompt": prompt.negative, **own}

    def captions(self, count: int) -> list[str]:
        return [self.prompt(i).text for i in range(count)]

    def turns(self, count: int) -> int:
        return len(self.prompts) if len(self.prompts) < count else 1


def prompt_conditions(
    request: SamplingRequest, *, default_guidance: float, embeds_guidance: bool, student: bool
) -> PromptConditions:
    """The prompts of a request, each with the negative one that acts on it.

    default_guidance: where the request names none, and it is no student; embeds_guidance: whether the scale is an
    input of the network, which has no second pass. A prompt's own negative text comes before the request's. Without a
    second pass neither acts: the request's is refused, those of a file are left out, so that teacher and student can
    draw the same file. Raises ConfigError for class labels, no prompts and texts that are none.
    """
    if request.class_labels is not None:
        raise ConfigError("this model draws texts and takes no class labels; give --prompt TEXT or --prompts FILE")
    if student:
        check_student_guidance(request.guidance_scale)
    given = default_guidance if request.guidance_scale is None else float(request.guidance_scale)
    guidance, negative = 1.0 if student else given, request.negative_prompt
    if not request.prompts:
        raise ConfigError("this model draws texts; give --prompt TEXT or --prompts FILE")
    two_passes = guidance != 1 and not embeds_guidance
    if negative is not None and not two_passes:
        more = "" if student or embeds_guidance else ", or set a guidance scale other than 1"
        raise ConfigError(
            f"a negative prompt acts through the second pass of guidance, and here is none; leave it out{more}"
        )
    prompts = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in request.prompts]
    for text in [prompt.text for prompt in prompts] + ([] if not negative else [negative]):
        problem = problem_of(text)
        if problem is not None:
            raise ConfigError(f"the prompt {text!r} {problem}; write a text")
    if not two_passes:
        return PromptConditions(guidance, None, tuple(replace(prompt, negative=None) for prompt in prompts))
    filled = (p if p.negative is not None else replace(p, negative=negative) for p in prompts)
    return PromptConditions(guidance, None, tuple(filled))
