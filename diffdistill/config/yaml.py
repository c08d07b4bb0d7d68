"""Strict YAML: what a person meant, or an error with its line.

Stock YAML readers turn `1e-4` into text, `12:30` into 750 and `no` into false, and let the last of two equal keys
win. Here numbers follow YAML 1.2, only `true` and `false` are booleans, and a duplicate key, a tag or an alias is an
error.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from diffdistill.errors import ConfigError

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
TAG = "tag:yaml.org,2002:"
RULES = [  # type, what it looks like (YAML 1.2, core schema), the characters it may start with
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
]


class _Refused(Exception):
    def __init__(self, line: int, sentence: str):
        super().__init__(sentence)
        self.line = line


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            raise _Refused(line, f"alias '*{event.anchor}' is not supported; write the value again or use 'base:'")
        if getattr(event, "tag", None):
            raise _Refused(line, f"tag '{event.tag}' is not supported; write a plain value")
        if self.depth >= MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} deep; a setting is never that deep")
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


@dataclass
class Document:
    """Plain data, and the line of every key and list item by its path."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)


def _scalar(node: ScalarNode) -> Any:
    text = node.value
    match node.tag.removeprefix(TAG):
        case "null":
            return None
        case "bool":
            return text == "true"
        case "int":
            base = {"0x": 16, "0o": 8}.get(text[:2], 10)
            if len(text) > 100:
                raise _Refused(node.start_mark.line + 1, f"a number of {len(text)} digits; write a shorter one")
            return int(text, base)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _build(node: Node, path: Path, lines: dict[Path, int]) -> Any:
    if isinstance(node, MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise _Refused(line, "a key must be a plain word, not a list or a section")
            key = key_node.value
            if key in result:
                first = lines[(*path, key)]
                raise _Refused(line, f"key '{key}' was given before, on line {first}; keep one of the two")
            lines[(*path, key)] = line
            result[key] = _build(value_node, (*path, key), lines)
        return result
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
        return [_build(item, (*path, index), lines) for index, item in enumerate(node.value)]
    return _scalar(node)


def parse(text: str, source: str) -> Document:
    """Read one YAML document; `source` names it in errors, as `source:line: what is wrong`.

    Raises ConfigError for text that is not YAML, duplicate keys, tags, aliases and absurd nesting.
    """
    document = Document(None)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _build(node, (), document.lines)
    except _Refused as error:
        raise ConfigError(f"{source}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context
        if error.problem and error.problem.startswith("but "):
            problem = f"{error.context}, {error.problem}"
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}:{line}: character {chr(error.character)!r} is not allowed in YAML") from None
    return document


def read(path: File, label: str) -> Document:
    """Read a file; `label` is what errors call it. Raises ConfigError if it cannot be read or is no UTF-8 text."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{label}: larger than {MAX_BYTES >> 20} MiB; settings are a small text file, is this the one?"
            )
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read ({error.strerror}); check its name and rights") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{label}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return parse(text, label)


def flow(value: Any) -> str:
    """A value on one line, in the form that `parse` reads back as the same value."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
