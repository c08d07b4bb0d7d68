"""Two halves: whether two models of disjoint halves of a set say the same of held-out images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Figure, Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.probe import Probe


# Settings of what is drawn, at which a metric that compares denoisers alone never looks.
DRAWING = (
    "steps", "class_labels", "prompt", "prompts", "negative_prompt", "guidance_scale", "sampler", "epsilon_scaling",
    "time_shift_sampler", "calibration", "signal_leak",
)  # fmt: skip
AT_STEPS = re.compile(r"(.+)@(\d+)")


def drawn_in_vain(name: str, settings: Any, models: Sequence[str]) -> str | None:
    """A sentence where the metric `name` alone is asked for, and settings, or MODEL@K, say how images are drawn."""
    given = [f"--{key.replace('_', '-')}" for key in DRAWING if getattr(settings, key) is not None]
    steps = [(model, AT_STEPS.fullmatch(model)) for model in models]
    given += [f"@{found[2]} of '{model}'" for model, found in steps if found and not Path(model).exists()]
    if not given:
        return None
    return f"{given[0]} is of images that are drawn, and {name} draws none: leave it out, or add another metric"


def probe(model: "Probe") -> dict[str, Any]:
    """The mean over the levels, the least of them, and all."""
    from diffdistill.evaluation.halves import compare

    return compare(model)


METRIC = Metric(
    name="two_halves",
    label="Agreement of two halves",
    summary="Of models trained on disjoint images: 1 has generalised, 0 remembers",
    figures=(
        Figure("two_halves", "Agreement of two halves"),
        Figure("two_halves_least", "Agreement of two halves, least of any level"),
    ),
    needs=("pixels", "other_half"),
    probe=probe,
    order=110,
    least=2,
)
