"""README.md of a model on its way to the Hub: its own, with base model, licence and figures where it lacks them."""

from pathlib import Path
from typing import Any

from diffdistill.errors import DiffDistillError
from diffdistill.export.source import Source
from diffdistill.files import is_hub_id, read_json, read_text
from diffdistill.pipelines.folder import CARD, local
from diffdistill.reporting.front_matter import VAGUE, base_model, completed, facts_of, model_index


def card_of(source: Source, base: str | None, licence: str | None) -> str:
    """The README.md. base, licence: what the user says of them, in place of what is found here."""
    file = source.folder / CARD
    card = read_text(file) if file.is_file() else _short(source)
    task = "text-to-image" if source.draws_texts else "unconditional-image-generation"
    found: dict[str, Any] = {
        "license": licence_of(source) or VAGUE,
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": ["diffusers", "diffdistill"] if source.record else ["diffusers"],
        "base_model": base_model(source.record),
        "model-index": model_index(figures_of(source), task, source.folder.name),
    }
    said = {key: value for key, value in (("license", licence), ("base_model", base)) if value}
    return completed(card, {key: value for key, value in found.items() if value}, said)


def _short(source: Source) -> str:
    return (
        f"# {source.folder.name}\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{source.folder.name}")  # this folder, or its Hub id\n```\n'
    )


def licence_of(source: Source) -> str | None:
    """The licence of what a model was made from, where its card is on this machine; None where nobody says it."""
    name = source.record.get("teacher") or source.record.get("model")
    file = None if not isinstance(name, str) else _card_here(name)
    licence = facts_of(read_text(file)).get("license") if file is not None else None
    return licence if isinstance(licence, str) and licence != VAGUE else None


def _card_here(name: str) -> Path | None:
    """The README.md of a model that is a folder here, or in the cache of the Hub's client; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    try:
        if is_hub_id(name):
            cached = try_to_load_from_cache(name, CARD)
            return Path(cached) if isinstance(cached, str) else None
        folder = local(name)
    except DiffDistillError:
        return None
    return folder / CARD if folder is not None and (folder / CARD).is_file() else None


def figures_of(source: Source) -> dict[str, Any]:
    """The evaluation that the run of a model left beside it; {} for a model that is in no run."""
    run = source.folder.absolute().parent
    if not (run / "config.yaml").is_file():
        return {}
    try:
        found = read_json(run / "evaluation.json").get(source.record.get("role"), {})
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
