"""Sentences for settings that do not fit: where it stands, what was given, what is allowed."""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import reduce
from operator import getitem
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffdistill.config.yaml import Path, flow, places_in
from diffdistill.section import OneOf

ALLOWED = {  # by pydantic's error type; {..} are its numbers
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "none_required": "null",
    "finite_number": "a finite number",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
    "string_too_short": "text of at least {min_length} characters",
    "literal_error": "one of {expected}",
}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The section classes an annotation admits: of `A | B | None` A and B."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def variants(info: FieldInfo, value: Any) -> list[type[BaseModel]]:
    """The section classes that `value` can be of: of a family told apart by a key such as `name`, the one it names."""
    models = models_in(info.annotation)
    if isinstance(info.discriminator, str) and isinstance(value, dict):
        tag = value.get(info.discriminator)
        return [model for model in models if tag in _tags(model, info.discriminator)]
    return models


def fields_of(model: type[BaseModel], value: Any, prefix: Path = ()) -> Iterator[tuple[Path, FieldInfo]]:
    """Every key that settings like `value` may have, with its field."""
    for name, info in model.model_fields.items():
        path = (*prefix, name)
        yield path, info
        inner = value.get(name) if isinstance(value, dict) else None
        if not isinstance(inner, dict) and isinstance(info.default, BaseModel):
            sections = [type(info.default)]
        else:
            sections = variants(info, inner) or models_in(info.annotation)
        for section in sections:
            yield from fields_of(section, inner, path)


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _tags(model: type[BaseModel], key: str) -> tuple[str, ...]:
    return typing.get_args(model.model_fields[key].annotation)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _near(name: str, words: Iterable[str], cutoff: float = 0.7) -> list[str]:
    """Words like a mistyped one; an abbreviation such as `lr` means `learning_rate`."""
    words = list(words)
    short = [word for word in words if len(name) > 1 and "".join(part[:1] for part in word.split("_")) == name]
    return get_close_matches(name, words, 2, cutoff) or short


def _did_you_mean(path: Path, fields: Mapping[Path, FieldInfo]) -> str:
    """Near names in the same section first, then what section of the family has it, then the same name in other
    sections, then near names anywhere.
    """
    section, name = path[:-1], str(path[-1])
    siblings = [str(key[-1]) for key in fields if key[:-1] == section]
    guesses: list[Path] = [(*section, word) for word in _near(name, siblings)[:1]]
    family = fields.get(section)
    if not guesses and family is not None and isinstance(tag := family.discriminator, str):
        owners = [model for model in models_in(family.annotation) if name in model.model_fields]
        if owners:
            return f"only with {_either([f'{dotted(section)}.{tag}={_tags(owner, tag)[0]}' for owner in owners])}"
    guesses += [key for key in fields if key[-1] == name]
    if not guesses:
        leaves = sorted({str(key[-1]) for key in fields})
        guesses = [key for word in _near(name, leaves, 0.8) for key in fields if key[-1] == word]
    if guesses:
        return f"did you mean {_either([repr(dotted(key)) for key in guesses[:3]])}?"
    place = f"'{dotted(section)}'" if section else "the top level"
    return f"keys of {place}: {', '.join(siblings)}" if siblings else "it has no such keys"


def _locate(error: Mapping[str, Any], data: Any) -> Path:
    """The path in the user's data: pydantic's, less the names of union members that it inserts."""
    path: list[str | int] = []
    for part in error["loc"]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" else tuple(path)


def _allowed(error: Mapping[str, Any], info: FieldInfo | None) -> str:
    """What may stand there, in words."""
    if error["type"] in ALLOWED:
        return ALLOWED[error["type"]].format(**error.get("ctx", {})) + _or_file(info)
    if info is not None and isinstance(info.discriminator, str):
        tags = [tag for one in models_in(info.annotation) for tag in _tags(one, info.discriminator)]
        return f"a section with '{info.discriminator}': one of {_either([repr(tag) for tag in tags])}"
    if info is not None and (sections := models_in(info.annotation)):
        return f"a section with keys of {_either([', '.join(one.model_fields) for one in sections])}"
    return str(error["msg"])


def _or_file(info: FieldInfo | None) -> str:
    """What to add to a list of names where a file of the user's own may be named too."""
    names = [entry for entry in getattr(info, "metadata", ()) if isinstance(entry, OneOf)]
    sections = [] if info is None else models_in(info.annotation)
    of_files = any(entry.files for entry in names) or any(getattr(one, "from_files", False) for one in sections)
    return ", or FILE.py:NAME" if of_files else ""


def _wrong(path: Path, errors: list[Mapping[str, Any]], fields: Mapping[Path, FieldInfo], data: Any) -> str:
    """The sentence about one setting."""
    info, kind, name = fields.get(path), errors[0]["type"], dotted(path)
    if kind == "extra_forbidden":
        return f"unknown key '{name}' ({_did_you_mean(path, fields)})"
    if kind == "missing":
        tag = f".{info.discriminator}" if info is not None and isinstance(info.discriminator, str) else ""
        return f"'{name}' is missing; add it, or say {name}{tag}=VALUE"
    if kind == "value_error":
        return str(errors[0]["ctx"]["error"])
    value = reduce(getitem, path, data)
    if kind == "union_tag_invalid" and info is not None:
        tag = str(info.discriminator)
        value, name = value[tag], f"{name}.{tag}"
        allowed = f"one of {errors[0]['ctx']['expected_tags']}{_or_file(info)}"
    else:
        allowed = _either(list(dict.fromkeys(_allowed(error, info) for error in errors)))
    words = [] if allowed.startswith("a section") else re.findall(r"'([^']+)'", allowed)
    near = _near(value, words, 0.6) if isinstance(value, str) else []
    given = repr(value) if isinstance(value, str) else flow(value)
    given = given if len(given) <= 60 else f"{given[:57]}..."
    return f"'{name}' is {given}; it must be {allowed}" + (f" (did you mean '{near[0]}'?)" if near else "")


def _named(sentence: str, section: Path, places: Mapping[Path, str]) -> Path | None:
    """Of the settings given in a section the one that a sentence names: the last laid over the others, else the first
    named.
    """
    found = {}
    for path in places:
        names = dotted(path), dotted(path[len(section) :]), str(path[-1])
        words = "|".join(re.escape(name) for name in names if name)
        inside = path[: len(section)] == section and len(path) > len(section)
        if inside and (match := re.search(rf"(?<![\w.])({words})(?!\w)", sentence)):
            found[path] = (not places[path].startswith("override '"), match.start())
    return min(found, key=found.__getitem__) if found else None


def sentences(
    error: ValidationError, model: type[BaseModel], data: dict[str, Any], given: dict[str, Any], label: str
) -> list[str]:
    """One sentence for each setting that is wrong, in the order of the files.

    given: the settings with their places; data: the same, completed from defaults; label: the config.
    """
    errors: dict[Path, list[Mapping[str, Any]]] = {}
    for item in error.errors(include_url=False):
        errors.setdefault(_locate(item, data), []).append(item)
    # A list whose members are wrong counts as empty, too.
    errors = {
        path: items
        for path, items in errors.items()
        if items[0]["type"] != "too_short" or not any(len(o) > len(path) and o[: len(path)] == path for o in errors)
    }
    fields, places = dict(fields_of(model, data)), {path: place for path, place, _ in places_in(given)}
    order = {path: position for position, path in enumerate(places)}
    lines = []
    for path, items in errors.items():
        # Of a family it is the name that is wrong.
        wrong = (*path, str(fields[path].discriminator)) if items[0]["type"] == "union_tag_invalid" else path
        sentence = _wrong(path, items, fields, data)
        known = next((wrong[:length] for length in range(len(wrong), 0, -1) if wrong[:length] in places), ())
        if items[0]["type"] == "value_error":  # of several settings together
            known = _named(sentence, path, places) or known
        lines.append((order.get(known, -1), f"{places.get(known, label)}: {sentence}"))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]
