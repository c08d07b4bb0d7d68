"""Strict YAML: what a person meant, or an error with its line.

Stock YAML readers turn `1e-4` into text, `12:30` into 750 and `no` into false, and let the last of two equal keys
win. Here numbers follow YAML 1.2, only `true` and `false` are booleans, and a duplicate key, a tag or an alias is an
error.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path as File
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from diffdistill.errors import ConfigError
from diffdistill.files import read_bounded

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 17  # a second to read; configs take some thousand
MAX_DEPTH = 32
TAG = "tag:yaml.org,2002:"
RULES = [  # type, what it looks like (YAML 1.2, core schema), the characters it may start with
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
]
READ: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text == "true",
    "int": lambda text: int(text, {"0x": 16, "0o": 8}.get(text[:2], 10)),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class Placed(dict[str, Any]):
    """A section, and where each of its keys was given: `file:line`, or the override."""

    def __init__(self, data: dict[str, Any] | None = None, places: dict[str, str] | None = None):
        super().__init__(data or {})
        self.places = dict(places or getattr(data, "places", {}))


class PlacedList(list[Any]):
    """A list, and where each item was given."""

    places: dict[int, str]


def places_in(data: Any, prefix: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """`(path, place, value)` of everything that was given."""
    for key, place in getattr(data, "places", {}).items():
        yield (*prefix, key), place, data[key]
        yield from places_in(data[key], (*prefix, key))


class _Refused(yaml.MarkedYAMLError):
    """YAML that is valid and not taken."""

    def __init__(self, mark: yaml.Mark, sentence: str):
        super().__init__(problem=sentence, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if isinstance(event, AliasEvent):
            alias = f"alias '*{event.anchor}' is not supported; write the value again or use 'base:'"
            raise _Refused(event.start_mark, alias)
        if getattr(event, "tag", None):
            raise _Refused(event.start_mark, f"tag '{event.tag}' is not supported; write a plain value")
        if self.depth >= MAX_DEPTH:
            raise _Refused(event.start_mark, f"nested more than {MAX_DEPTH} deep; a setting is never that deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_STOCK = yaml.resolver.Resolver()


def _represent_text(dumper: _Dumper, text: str) -> Node:
    style = None
    if not text.isprintable():
        style = '"'  # a line break must not break the line it stands on
    elif _STOCK.resolve(ScalarNode, text, (True, False)) != TAG + "str":
        style = "'"  # `no` is text here, but stock readers must see text too
    return dumper.represent_scalar(TAG + "str", text, style=style)


for _cls in (_Loader, _Dumper):
    _cls.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in RULES:
        _cls.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(dict, _Dumper.represent_dict)
_Dumper.add_multi_representer(list, _Dumper.represent_list)


def _build(node: Node, source: str, numbered: bool) -> Any:
    def place(mark: yaml.Mark) -> str:
        return f"{source}:{mark.line + 1}" if numbered else source

    if isinstance(node, ScalarNode):
        kind = node.tag.removeprefix(TAG)
        if kind == "int" and len(node.value) > 100:
            raise _Refused(node.start_mark, f"a number of {len(node.value)} digits; write a shorter one")
        return READ[kind](node.value)
    if isinstance(node, SequenceNode):
        items = PlacedList(_build(item, source, numbered) for item in node.value)
        items.places = {index: place(item.start_mark) for index, item in enumerate(node.value)}
        return items
    assert isinstance(node, MappingNode)
    section, lines = Placed(), dict[str, int]()
    for key_node, value_node in node.value:
        mark, key = key_node.start_mark, key_node.value
        if not isinstance(key_node, ScalarNode):
            raise _Refused(mark, "a key must be a plain word, not a list or a section")
        if key in section:
            raise _Refused(mark, f"key '{key}' was given before, on line {lines[key]}; keep one of the two")
        lines[key], section.places[key] = mark.line + 1, place(mark)
        section[key] = _build(value_node, source, numbered)
    return section


def parse(text: str, source: str, numbered: bool = True) -> Any:
    """Read one YAML document into plain values, `Placed` and `PlacedList`.

    source: its name in errors and places; numbered: with the line. Raises ConfigError for text that is not YAML,
    duplicate keys, tags, aliases and absurd nesting.
    """
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _build(node, source, numbered)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context
        if problem and problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if numbered and mark else source
        kind = "" if isinstance(error, _Refused) else "not valid YAML: "
        raise ConfigError(f"{where}: {kind}{problem}") from None
    except yaml.reader.ReaderError as error:
        where = f"{source}:{text.count(chr(10), 0, error.position) + 1}" if numbered else source
        raise ConfigError(f"{where}: character {chr(error.character)!r} is not allowed in YAML") from None


def read(path: File, label: str) -> Any:
    """Read a file; `label` is what errors call it. Raises ConfigError if it cannot be read or is no UTF-8 text."""
    try:
        raw = read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read ({error.strerror}); check its name and rights") from None
    except ValueError:
        raise ConfigError(
            f"{label}: larger than {MAX_BYTES >> 10} KiB; settings are a small text file, is this the one?"
        ) from None
    try:
        return parse(raw.decode("utf-8"), label)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{label}:{line}: not UTF-8 text; save the file as UTF-8") from None


def flow(value: Any) -> str:
    """A value on one line, in the form that `parse` reads back as the same value."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
