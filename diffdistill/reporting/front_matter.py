"""What the Hub reads of a README.md: licence, base model, tags and figures (model-index), as YAML at its top."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffdistill.evaluation.figures import features_of, label_of, values_of
from diffdistill.files import is_hub_id
from diffdistill.pipelines.folder import published

FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)
VAGUE = "other"  # the licence of what somebody else licensed


def front_matter(
    licence: str,
    pipeline_tag: str,
    tags: Sequence[str],
    base: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The YAML between its lines. base: id of the teacher on the Hub; evaluation: what `Evaluator` returned."""
    facts: dict[str, Any] = {
        "license": licence,
        "library_name": "diffusers",
        "pipeline_tag": pipeline_tag,
        "tags": ["diffdistill", "diffusers", *tags],
    }
    facts |= {} if base is None else {"base_model": base}
    index = model_index(evaluation or {}, pipeline_tag)
    return framed(facts | ({"model-index": index} if index else {}))


def framed(facts: Mapping[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return f"---\n{text.strip()}\n---"


def base_model(record: Mapping[str, Any]) -> str | None:
    """The Hub id of what a model was made from; None for a folder of some machine, of which the Hub knows nothing.

    record: content of diffdistill.json.

    >>> base_model({"teacher": "stabilityai/sdxl-turbo"}), base_model({"teacher": "sd15"})
    ('stabilityai/sdxl-turbo', None)
    """
    name = record.get("teacher") or record.get("model")
    return name if isinstance(name, str) and is_hub_id(name) else None


def model_index(evaluation: Mapping[str, Any], task: str, name: str = "student") -> list[dict[str, Any]]:
    """The figures of an evaluation as the Hub's model-index; [] without any that is a number.

    evaluation: what `Evaluator` returned. task: of the Hub's names of tasks.

    >>> figures = {"metrics": {"fid": {"value": 1.5}}, "protocol": {"reference": {"name": "builtin:emoji"}}}
    >>> model_index(figures, "text-to-image")[0]["results"][0]["metrics"]
    [{'type': 'fid', 'value': 1.5, 'name': 'FID'}]
    """
    evaluation = published(dict(evaluation))
    features, words = features_of(evaluation), evaluation.get("figures")
    metrics = [
        {"type": figure, "value": value.value, "name": label_of(figure, features, words)}
        for figure, value in values_of(evaluation).items()
        if isinstance(value.value, int | float) and math.isfinite(value.value)
    ]
    if not metrics:
        return []
    data = str(((evaluation.get("protocol") or {}).get("reference") or {}).get("name") or "its own data")
    dataset = {"name": data, "type": data.removeprefix("builtin:")}
    return [{"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]}]


def facts_of(card: str) -> dict[str, Any]:
    """The YAML at the top of a README.md; {} where there is none, or none that can be read."""
    import yaml

    match = FRONT.match(card)
    try:
        facts = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return facts if isinstance(facts, dict) else {}


def completed(card: str, facts: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> str:
    """A README.md with what its front matter lacks; what it says stays, but for a licence that says `other`.

    said: what takes the place of what the card says.

    >>> print(completed("---\\nlicense: other\\n---\\n\\n# Mine\\n", {"license": "mit", "base_model": "a/b"}))
    ---
    license: mit
    base_model: a/b
    ---
    <BLANKLINE>
    # Mine
    <BLANKLINE>
    """
    known = facts_of(card)
    added = {key: value for key, value in facts.items() if known.get(key) in (None, [], "")}
    if known.get("license") == VAGUE and facts.get("license"):
        added["license"] = facts["license"]
    added |= said or {}
    if not added:
        return card
    return f"{framed(known | added)}\n\n{FRONT.sub('', card, count=1).lstrip()}"
