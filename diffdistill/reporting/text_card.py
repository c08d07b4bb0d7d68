"""README.md of a text-to-image student: its use in stock diffusers, its figures, its origin."""

from typing import Any

from diffdistill.reporting.model_card import metrics_section, model_card, origin, public_settings


def card_of(*, metadata: dict[str, Any], evaluation: dict[str, Any] | None = None, config: str = "") -> str:
    """README.md of any model, by what diffdistill.json says of it; arguments as of `model_card`."""
    write = text_card if "pipeline" in metadata else model_card
    return write(metadata=metadata, evaluation=evaluation, config=config)


def text_card(*, metadata: dict[str, Any], evaluation: dict[str, Any] | None = None, config: str = "") -> str:
    """Markdown with the front matter of the Hub; arguments as of `model_card`."""
    teacher = _name(metadata.get("teacher") or metadata.get("path") or "a text-to-image pipeline")
    steps = len(metadata.get("levels") or ())
    parts = [
        _front_matter(teacher),
        f"# {'One' if steps == 1 else steps}-step {teacher}",
        f"Distilled from {teacher} into {'one evaluation' if steps == 1 else f'{steps} evaluations'} of its network; "
        f"under the licence of {teacher}.",
        f"## Use\n\n{_use(metadata)}",
        metrics_section(evaluation or {}),
        f"## Made from\n\n{origin(True, metadata)}",
        f"## Settings\n\n```yaml\n{public_settings(config)}\n```" if config else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].removeprefix("builtin:")


def _front_matter(teacher: str) -> str:
    tags = ["diffdistill", "diffusers", "text-to-image", "distillation"]
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image", "license: other", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _use(metadata: dict[str, Any]) -> str:
    call = metadata.get("call") or {}
    arguments = "".join(f", {name}={value}" for name, value in call.items())
    # These pipelines draw the noise between their steps from torch's own generator.
    flow = str(metadata.get("scheduler")).startswith("FlowMatch")
    own = OWN_GENERATOR if flow and len(metadata.get("levels") or ()) > 1 else ""
    levels = "in the call: leave none of it out" if {"timesteps", "sigmas"} & call.keys() else "in the scheduler"
    return f"""```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("student")  # this folder, or its Hub id
image = pipe("a caption"{arguments}, generator=torch.Generator().manual_seed(0)).images[0]
image.save("image.png")
```

The levels are {levels}; the guidance is in the weights.{own}"""


OWN_GENERATOR = """ This pipeline draws the noise between its steps from torch's own generator: for the
same image again call `torch.manual_seed` too."""
