"""The place of a setting before a complaint that was made elsewhere: file and line, or the override."""

import re
from collections.abc import Mapping
from typing import Any

from diffdistill.config.unused import value_at
from diffdistill.errors import CheckpointError, ConfigError, DataError, DiffDistillError, Problems

NAMES = (
    "data.path", "data.prompts", "data.held_out_path", "teacher", "teacher_lora", "model", "initialize_from",
    "evaluation.reference", "evaluation.prompts", "evaluation.features", "evaluation.clip",
    "method.reward.name", "output_dir",
)  # fmt: skip
"""Keys whose values are names of files, models and data: a complaint often says the name alone."""


def placed(
    error: DiffDistillError, config: Any, origins: Mapping[str, str], key: str | None = None
) -> DiffDistillError:
    """The error with the place of the setting it is about before it, where that was given; else as it is.

    key: that setting; None: the first dotted key that the sentence names, else the one whose value it quotes.
    """
    text = str(error)
    if isinstance(error, Problems) or type(error) not in (ConfigError, DataError, CheckpointError):
        return error
    found = key if key is not None else _key_in(text, origins) or _value_in(text, config, origins)
    if key is None and found == "output_dir" and "was made with other" in text:
        return error  # the folder is right, and what differs is named
    place = None if found is None else origins.get(found)
    if place is None or text.startswith(place):
        return error
    located = type(error)(f"{place}: {text}")
    located.told = error.told
    return located


def _key_in(text: str, origins: Mapping[str, str]) -> str | None:
    """The first of the given keys that a sentence names: one without a dot only where it cannot be another word."""
    found = []
    for key in origins:
        pattern = rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)" if "." in key else rf"'{key}'|(?<![\w.']){key}(?:=| ')"
        if match := re.search(pattern, text):
            found.append((match.start(), key))
    return min(found)[1] if found else None


def _value_in(text: str, config: Any, origins: Mapping[str, str]) -> str | None:
    for key in NAMES:
        value = value_at(config, key)
        given = key in origins and isinstance(value, str) and value
        if given and re.search(rf"(?<![\w/.-]){re.escape(value)}(?![\w/-])", text):
            return key
    return None
