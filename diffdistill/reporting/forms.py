"""What a report takes from the files of a run folder, which may be anyone's: known keys of known types, no more."""

from collections.abc import Callable
from typing import Any

LARGEST, LONGEST, MOST = 1e30, 10_000, 300  # of a number, a text, and entries of one section
Form = Any
"""A check of one value, `{key: form}` (`"*"`: any further key), `[form]`, or a tuple: one of its forms must fit."""


def number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= LARGEST  # NaN is not


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1e15


def text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


NUMBERS: Form = (number, {"*": number})
SCORE: Form = {"*": number, "floor": {"value": NUMBERS, "n": count}, "of_the_reference": NUMBERS}
DIGEST: Form = {"id": text, "dim": count, "count": count, "num_images": count, "name": text, "sha256": text}
PROTOCOL: Form = {
    "num_images": count, "num_pairs": count, "levels": count, "judged_images": count, "seed": (count, text),
    "features": DIGEST, "reference": DIGEST | {"fingerprint": text}, "texts": DIGEST, "clip_model": DIGEST,
    "rewards": {"*": text}, "resize": text, "backend": text, "dtype": text, "vae_dtype": text,
}  # fmt: skip
CALLS: Form = {"evaluations": count}
EVALUATIONS: Form = {"*": {
    "metrics": {"*": SCORE}, "protocol": PROTOCOL, "warnings": [text], "sampling": CALLS, "subject": CALLS,
    "figures": {"*": {"label": text, "lower_is_better": flag}},
}}  # fmt: skip
TRAINED: Form = {"steps": count, "optimizer": {"max_grad_norm": number}}
CONFIG: Form = TRAINED | {
    "teacher": text, "model": text, "train_batch_size": count, "student": TRAINED, "critic": TRAINED,
    "method": {"name": text, "adversarial": TRAINED}, "objective": {"name": text},
    "data": {"path": text, "prompts": text}, "evaluation": {"stop": {"metric": text, "margin": number}},
}  # fmt: skip
MODEL: Form = {"levels": [number], "config_sha256": text, "role": text, "training": text}
ENVIRONMENT: Form = {"*": (flag, number, text)}


def formed(value: Any, form: Form) -> Any:
    """`value` without what is not of the form; None where nothing of it is."""
    if isinstance(form, tuple):
        return next((part for one in form if (part := formed(value, one)) is not None), None)
    if isinstance(form, list):
        kept = [formed(item, form[0]) for item in value[:MOST]] if isinstance(value, list) else []
        return [item for item in kept if item is not None] if isinstance(value, list) else None
    if isinstance(form, dict):
        return _section(value, form) if isinstance(value, dict) else None
    check: Callable[[Any], bool] = form
    return value if check(value) else None


def _section(value: dict[Any, Any], form: dict[str, Form]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if len(kept) == MOST or not text(key) or (key not in form and "*" not in form):
            continue
        part = formed(inner, form.get(key, form.get("*")))
        if part is not None:
            kept[key] = part
    return kept
