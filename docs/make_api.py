"""Writes docs/api.md: the public names of the package by module, a line each, from their docstrings.

python docs/make_api.py            writes it
python docs/make_api.py --check    exit code 1 where the page is not up to date
"""

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Public names

Written by `python docs/make_api.py`; a line is the first sentence of a docstring, `help(NAME)` has the rest: equation,
shapes, units, errors, source. Names that are not here may change.
"""
MODULES = (
    "diffdistill",
    "diffdistill.process",
    "diffdistill.divergences",
    "diffdistill.losses",
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
    "diffdistill.evaluation.features",
    "diffdistill.evaluation.backends",
    "diffdistill.sampling.sampler",
    "diffdistill.schedulers",
    "diffdistill.models",
    "diffdistill.parts.attention.kernels",
    "diffdistill.pipelines.text.adapter",
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
    text = re.split(r"(?<!eq)(?<!al)\. |; ", text)[0]
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


def section(name: str) -> str:
    module = importlib.import_module(name)
    rows = [f"| `{key}{parameters(getattr(module, key))}` | {first_sentence(getattr(module, key))} |"
            for key in public_names(module)]  # fmt: skip
    return "\n".join([f"## `{name}`", "", first_sentence(module) + ".", "", "| name | |", "|---|---|", *rows])


def page() -> str:
    return "\n\n".join([HEAD.rstrip(), *map(section, MODULES)]) + "\n"


if __name__ == "__main__":
    written = page()
    if "--check" in sys.argv[1:]:
        sys.exit(PAGE.read_text(encoding="utf-8") != written and "docs/api.md is old: python docs/make_api.py")
    PAGE.write_text(written, encoding="utf-8")
