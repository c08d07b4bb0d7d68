"""Sentences for settings that do not fit: where it stands, what was given, what is allowed."""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffdistill.config.yaml import Path, flow

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


def keys_of(model: type[BaseModel], value: Any, prefix: Path = ()) -> Iterator[Path]:
    """Every key that settings like `value` may have."""
    for name, info in model.model_fields.items():
        path = (*prefix, name)
        yield path
        inner = value.get(name) if isinstance(value, dict) else None
        if not isinstance(inner, dict) and isinstance(info.default, BaseModel):
            sections = [type(info.default)]
        else:
            sections = variants(info, inner) or models_in(info.annotation)
        for section in sections:
            yield from keys_of(section, inner, path)


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _near(name: str, words: Iterable[str], cutoff: float = 0.7) -> list[str]:
    """Words like a mistyped one; an abbreviation such as `lr` means `learning_rate`."""
    words = list(words)
    return get_close_matches(name, words, 2, cutoff) or [
        word for word in words if len(name) > 1 and _initials(word) == name
    ]


def _did_you_mean(path: Path, model: type[BaseModel], data: Any) -> str:
    """Near names in the same section first, then the same name in other sections, then near names anywhere."""
    *section, name = path
    known = list(dict.fromkeys(keys_of(model, data)))
    siblings = [str(key[-1]) for key in known if list(key[:-1]) == section]
    guesses = [(*section, word) for word in _near(str(name), siblings)[:1]]
    guesses += [key for key in known if key[-1] == name and key not in (path, *guesses)]
    owners = _owners(path, model, data)
    if owners and not guesses:
        return f"only with {_either(owners)}"
    if not guesses:
        leaves = {str(key[-1]) for key in known}
        guesses = [key for word in _near(str(name), sorted(leaves), 0.8) for key in known if key[-1] == word]
    if guesses:
        return f"did you mean {_either([repr(dotted(key)) for key in guesses[:3]])}?"
    place = f"'{dotted(tuple(section))}'" if section else "the top level"
    return f"keys of {place}: {', '.join(siblings)}" if siblings else "it has no such keys"


def _owners(path: Path, model: type[BaseModel], data: Any) -> list[str]:
    """The other members of the family at `path[:-1]` that have this key: `method.name=sid` for `method.alpha`."""
    info = _field(model, data, path[:-1])
    if info is None or not isinstance(info.discriminator, str):
        return []
    tag = info.discriminator
    owners = [model for model in models_in(info.annotation) if path[-1] in model.model_fields]
    return [f"{dotted(path[:-1])}.{tag}={_tags(owner, tag)[0]}" for owner in owners]


def _tags(model: type[BaseModel], key: str) -> tuple[str, ...]:
    return typing.get_args(model.model_fields[key].annotation)


def _field(model: type[BaseModel], data: Any, path: Path) -> FieldInfo | None:
    info: FieldInfo | None = None
    models = [model]
    for part in path:
        info = next((one.model_fields[part] for one in models if part in one.model_fields), None)
        if info is None:
            return None
        data = data.get(part) if isinstance(data, dict) else None
        models = variants(info, data)
    return info


def _locate(error: Mapping[str, Any], data: Any) -> Path:
    """The path in the user's data: pydantic's, less the names of union members that it inserts."""
    path: list[str | int] = []
    loc = error["loc"]
    for position, part in enumerate(loc):
        last = position == len(loc) - 1 and error["type"] == "missing"
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside and not last:
            data = data[part] if not isinstance(data, list) or part < len(data) else None
        if inside or last:
            path.append(part)
    return tuple(path)


def _value(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _allowed(error: Mapping[str, Any], info: FieldInfo | None) -> str:
    """What may stand there, in words."""
    context = error.get("ctx", {})
    if error["type"] in ALLOWED:
        return ALLOWED[error["type"]].format(**context)
    if info is not None and isinstance(info.discriminator, str):
        tags = [tag for one in models_in(info.annotation) for tag in _tags(one, info.discriminator)]
        return f"a section with '{info.discriminator}': one of {_either([repr(tag) for tag in tags])}"
    if info is not None and (sections := models_in(info.annotation)):
        return f"a section with keys of {_either([', '.join(one.model_fields) for one in sections])}"
    return str(error["msg"])


def _given(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else flow(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong(path: Path, items: list[Mapping[str, Any]], model: type[BaseModel], data: Any) -> str:
    """The sentence about one setting."""
    info, kind, name = _field(model, data, path), items[0]["type"], dotted(path)
    if kind == "extra_forbidden":
        return f"unknown key '{name}' ({_did_you_mean(path, model, data)})"
    if kind == "missing":
        tag = f".{info.discriminator}" if info is not None and isinstance(info.discriminator, str) else ""
        return f"'{name}' is missing; add it, or say {name}{tag}=VALUE"
    if kind == "value_error":
        return str(items[0]["ctx"]["error"])
    value = _value(data, path)
    if kind == "union_tag_invalid" and info is not None:
        tag = str(info.discriminator)
        value, name = value[tag], f"{name}.{tag}"
        allowed = f"one of {items[0]['ctx']['expected_tags']}"
    else:
        allowed = _either(list(dict.fromkeys(_allowed(item, info) for item in items)))
    words = [] if allowed.startswith("a section") else re.findall(r"'([^']+)'", allowed)
    near = _near(value, words, 0.6) if isinstance(value, str) else []
    return f"'{name}' is {_given(value)}; it must be {allowed}" + (f" (did you mean '{near[0]}'?)" if near else "")


def sentences(
    error: ValidationError, model: type[BaseModel], data: dict[str, Any], places: Mapping[Path, str], label: str
) -> list[str]:
    """One sentence for each setting that is wrong, in the order of the files.

    data: as given, completed from defaults; places: `file:line` or override of each path in it; label: the config.
    """
    found: dict[Path, list[Mapping[str, Any]]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_locate(item, data), []).append(item)
    order = {path: position for position, path in enumerate(places)}
    lines = []
    for path, items in found.items():
        known = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in places), ())
        lines.append((order.get(known, -1), f"{places.get(known, label)}: {_wrong(path, items, model, data)}"))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]
