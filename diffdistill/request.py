"""A request for images, and what each of them shows: image i has the i-th class label or prompt, which repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    from diffdistill.data.prompts import Prompt


@dataclass(frozen=True)
class SamplingRequest:
    """How a model is to be sampled, as on the command line; what is None is the model's own choice.

    sampler: a name of `sampling.sampler.SAMPLERS`, or `FILE.py:NAME`; class_labels, prompts: drawn in turn;
    negative_prompt: what guidance leads away from; epsilon_scaling: "auto", "B" or "K,B"; time_shift_sampler: "auto"
    or "WINDOW,CUTOFF"; calibration: the file that "auto" reads in place of the model's own calibration.json;
    signal_leak: a file that `calibrate --fit signal-leak` wrote, or "auto", the model's own signal_leak.json.
    """

    steps: int | None = None
    sampler: str | None = None
    class_labels: Sequence[int] | None = None
    prompts: "Sequence[str | Prompt] | None" = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    epsilon_scaling: str | None = None
    time_shift_sampler: str | None = None
    calibration: str | None = None
    signal_leak: str | None = None


@dataclass(frozen=True)
class Conditions:
    """What images show, and how strongly guidance holds them to it: of a model with class labels, or with none.

    class_labels: image i has class_labels[i mod len]; None: the model has no classes. `prompts` is None here; models
    that draw texts have conditions of their own.
    """

    guidance_scale: float = 1.0
    class_labels: tuple[int, ...] | None = None
    prompts: "tuple[Prompt, ...] | None" = None

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Labels of the images `indices`, int64 `(B,)`."""
        classes = self.class_labels
        return None if classes is None else torch.tensor([classes[i % len(classes)] for i in indices])

    def tensors(self, model: Any, indices: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """Conditions of the images `indices` on the model's device, and what guidance leads away from: `(B,)` each.

        None in the second place is the model's own null condition.
        """
        return model.placed(self.labels(indices)), None

    def place(self, seed: int, index: int) -> tuple[int, int]:
        """`(seed, number)` of the generator of image `index`."""
        return seed, index

    def record(self, index: int) -> dict[str, Any]:
        """The entries of image `index` in `samples.json`."""
        return {"label": None if self.class_labels is None else self.class_labels[index % len(self.class_labels)]}

    def captions(self, count: int) -> list[str] | None:
        """The words under the first `count` images of a grid."""
        return None

    def turns(self, count: int) -> int:
        """How many different things are drawn in turn by `count` images; 1 where there is no turn to show."""
        return len(self.class_labels or (None,))


def check_student_guidance(given: float | None) -> None:
    """ConfigError for a scale of guidance of a student, which has its teacher's in its weights."""
    if given not in (None, 1.0):
        raise ConfigError("a student has its teacher's guidance built in; leave out the guidance scale")


def class_conditions(
    request: SamplingRequest, *, num_classes: int | None, null_class: int | None, student: bool
) -> Conditions:
    """The conditions of a model of pixels: the labels asked for, else every class in turn.

    Raises ConfigError for labels that the model does not have, guidance without a null class, and prompts.
    """
    labels = _labels(request.class_labels, num_classes)
    if student:
        check_student_guidance(request.guidance_scale)
    guidance = 1.0 if student or request.guidance_scale is None else float(request.guidance_scale)
    if guidance != 1.0 and (null_class is None or labels is None):
        raise ConfigError(
            f"guidance scale {guidance:g} needs a model with a null class (trained with class_dropout); leave it out"
        )
    if request.prompts is not None or request.negative_prompt is not None:
        what = "draws no classes either" if labels is None else f"has classes 0 to {num_classes - 1} (--class-labels)"  # type: ignore[operator]
        raise ConfigError(f"prompts need a text-to-image model, and this model {what}; leave the prompt out")
    return Conditions(guidance, labels)


def _labels(given: Sequence[int] | None, count: int | None) -> tuple[int, ...] | None:
    if given is None:
        return None if count is None else tuple(range(count))
    if count is None:
        raise ConfigError("this model is unconditional, it takes no class labels; leave them out")
    wrong = [label for label in given if not 0 <= label < count]
    if wrong or not given:
        problem = f"class label {wrong[0]} is out of range" if wrong else "the list of class labels is empty"
        raise ConfigError(f"{problem}; this model has classes 0 to {count - 1}")
    return tuple(given)
