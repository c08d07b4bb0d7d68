"""Writes docs/api.md: the public names of the package by module, a line each, and their examples, from docstrings.

python docs/make_api.py            writes it
python docs/make_api.py --check    exit code 1 where the page is not up to date
"""

import doctest
import importlib
import inspect
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Public names

Written by `python docs/make_api.py`; a line is the first sentence of a docstring, `help(NAME)` has the rest: equation,
shapes, units, errors, source. The examples are those of the docstrings, which suppose `import torch` and the name
itself; the tests run them as they stand here. Names that are not here may change.
"""
MODULES = (
    "diffdistill",
    "diffdistill.process",
    "diffdistill.divergences",
    "diffdistill.losses",
    "diffdistill.loss_weights",
    "diffdistill.coupling",
    "diffdistill.matching.step",
    "diffdistill.matching.settings",
    "diffdistill.matching.level_weights",
    "diffdistill.methods.base",
    "diffdistill.alignment",
    "diffdistill.rewards",
    "diffdistill.rewards.kinds",
    "diffdistill.data",
    "diffdistill.data.formats",
    "diffdistill.evaluation",
    "diffdistill.evaluation.metrics",
    "diffdistill.evaluation.brightness",
    "diffdistill.evaluation.features",
    "diffdistill.evaluation.interpolation",
    "diffdistill.evaluation.two_halves",
    "diffdistill.evaluation.backends",
    "diffdistill.sampling.sampler",
    "diffdistill.sampling.one_more_step",
    "diffdistill.sampling.signal_leak",
    "diffdistill.schedulers",
    "diffdistill.models",
    "diffdistill.parts.attention.kernels",
    "diffdistill.parts.one_encoder.decoders",
    "diffdistill.parts.one_encoder.pipeline",
    "diffdistill.parts.one_encoder.pixels",
    "diffdistill.parts.one_encoder.publish",
    "diffdistill.pipelines.text.adapter",
    "diffdistill.export.command",
    "diffdistill.export.formats",
    "diffdistill.export.push",
    "diffdistill.registry",
    "diffdistill.errors",
)


def public_names(module: ModuleType) -> list[str]:
    """The documented functions and classes: those of `__all__`, else those that the module defines."""
    listed = getattr(module, "__all__", None)
    names = listed or [name for name, value in vars(module).items() if _home(value) == module.__name__]
    return [name for name in names if not name.startswith("_") and _documented(getattr(module, name))]


def _home(value: object) -> str | None:
    return getattr(value, "__module__", None)


def _documented(value: object) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and bool(inspect.getdoc(value))


def first_sentence(value: object) -> str:
    """Of the docstring, without line breaks; of a module, its first line."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    ends = (match.start() for match in re.finditer(r"(?<!eq)(?<!al)\. |; ", text))
    text = text[: next((end for end in ends if text[:end].count("(") == text[:end].count(")")), None)]
    head = text.split(": ")[0]
    return (head if " " in head else text).rstrip(".:;").replace("|", "\\|")


def parameters(value: object) -> str:
    """The names of a function's arguments; of a class nothing."""
    if not inspect.isfunction(value):
        return ""
    names = []
    for name, argument in inspect.signature(value).parameters.items():
        if argument.kind is argument.KEYWORD_ONLY and "*" not in names and not any(n.startswith("*") for n in names):
            names.append("*")
        names.append({argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(argument.kind, "") + name)
    return f"({', '.join(names)})"


def example(module: str, name: str) -> str:
    """What a docstring shows, as it can be pasted: after the imports that it supposes; "" where it shows nothing."""
    steps = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(importlib.import_module(module), name)) or "")
    if not steps:
        return ""
    heads = [step.source.strip() for step in itertools.takewhile(lambda step: is_import(step.source), steps)]
    uses_torch = any("torch." in step.source for step in steps)
    lines = [f">>> {line}" for line in with_imports(heads, module, name, uses_torch)]
    for step in steps[len(heads) :]:
        first, *more = step.source.splitlines()
        lines += [f">>> {first}", *(f"... {line}".rstrip() for line in more)]
        lines += [step.want.rstrip("\n")] if step.want else []
    return "\n".join(lines)


def is_import(source: str) -> bool:
    return source.startswith(("import ", "from "))


def with_imports(given: list[str], module: str, name: str, uses_torch: bool) -> list[str]:
    """The import lines of an example and of what it supposes: those of the package last, a line a module."""
    ours: dict[str, set[str]] = {module: {name}}
    for line in given:
        if match := re.fullmatch(r"from (diffdistill[\w.]*) import ([\w, ]+)", line):
            ours.setdefault(match[1], set()).update(match[2].split(", "))
    others = [line for line in given if not line.startswith("from diffdistill")]
    whole = [line for line in others if line.startswith("import ")]
    whole += ["import torch"] if uses_torch and "import torch" not in whole else []
    parts = [line for line in others if line not in whole]
    return [*whole, *parts, *(f"from {home} import {', '.join(sorted(ours[home]))}" for home in sorted(ours))]


def public() -> dict[tuple[str, str], object]:
    """Every name with its module, once: a name that stands in two modules is shown where it comes first."""
    found: dict[int, tuple[tuple[str, str], object]] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for key in public_names(module):
            found.setdefault(id(getattr(module, key)), ((name, key), getattr(module, key)))
    return dict(found.values())


def section(name: str) -> str:
    module = importlib.import_module(name)
    rows = [f"| `{key}{parameters(getattr(module, key))}` | {first_sentence(getattr(module, key))} |"
            for key in public_names(module)]  # fmt: skip
    shown = [example(*place) for place in public() if place[0] == name]
    blocks = [f"\n```pycon\n{text}\n```" for text in shown if text]
    return "\n".join([f"## `{name}`", "", first_sentence(module) + ".", "", "| name | |", "|---|---|", *rows, *blocks])


def page() -> str:
    return "\n\n".join([HEAD.rstrip(), *map(section, MODULES)]) + "\n"


if __name__ == "__main__":
    written = page()
    if "--check" in sys.argv[1:]:
        sys.exit(PAGE.read_text(encoding="utf-8") != written and "docs/api.md is old: python docs/make_api.py")
    PAGE.write_text(written, encoding="utf-8")
