"""`diffdistill config`: settings as the program sees them."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from diffdistill.cli.front import checked_settings, verbs
from diffdistill.cli.recipes import listed, recipes
from diffdistill.config.complaints import models_in
from diffdistill.config.yaml import flow
from diffdistill.errors import ConfigError
from diffdistill.registry import named
from diffdistill.section import Section, meaning

FILES = {"list": 0, "show": 1, "keys": 0, "schema": 0, "diff": 2}


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key and its value."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keys(model: type[BaseModel], defaults: BaseModel | None = None, prefix: str = "") -> Iterator[str]:
    """A line for each dotted key: its default and its meaning."""
    for name, info in model.model_fields.items():
        value = getattr(defaults, name) if defaults else info.default
        if isinstance(value, BaseModel):
            yield from keys(type(value), value, f"{prefix}{name}.")
        elif sections := models_in(info.annotation):
            for section in sections:
                yield f"# {prefix}{name}: {' '.join(meaning(section).split())}"
                yield from keys(section, None, f"{prefix}{name}.")
        else:
            shown = "REQUIRED" if info.is_required() and defaults is None else flow(value)
            yield f"{prefix}{name}: {shown}" + (f"  # {info.description}" if info.description else "")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; `diff` returns 1 when the two differ, as the tool of that name."""
    settings = {name: verb.settings for name, verb in verbs().items() if verb.settings}
    if args.action == "list" and args.verb is None:
        print(listed(recipes()))
        return 0
    if args.verb not in settings:
        raise ConfigError(
            f"config {args.action}: '{args.verb or 'nothing'}' has no settings; say whose first: one of "
            f"{', '.join(settings)}, "
            "before any CONFIG"
        )
    if len(args.configs) != FILES[args.action]:
        raise ConfigError(
            f"config {args.action} {args.verb}: {len(args.configs)} CONFIG given, needed are {FILES[args.action]}; "
            "overrides are written --set key=value"
        )
    model: type[Section] = named(settings[args.verb])
    if args.action == "list":
        print(listed(recipe for recipe in recipes() if recipe.verb == args.verb))
    elif args.action == "schema":
        print(json.dumps(model.model_json_schema(), indent=2))
    elif args.action == "keys":
        print("\n".join(keys(model)))
    elif args.action == "show":
        print(checked_settings(verbs()[args.verb], args.configs[0], args.settings).text_yaml, end="")
    else:
        one, two = (
            dict(leaves(checked_settings(verbs()[args.verb], file).config.model_dump(mode="json")))
            for file in args.configs
        )
        different = [key for key in dict.fromkeys([*one, *two]) if one.get(key, key) != two.get(key, key)]
        for key in different:
            print(f"{key}: {flow(one[key]) if key in one else '-'} | {flow(two[key]) if key in two else '-'}")
        return int(bool(different))
    return 0
