"""Strict YAML: what a value is, what is refused, and that a written value reads back."""

import math

import pytest
import yaml

from diffdistill.config.yaml import flow, parse
from diffdistill.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("017", 17),
        ("0x1f", 31),
        ("0o17", 15),
        ("true", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("True", "True"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("'1'", "1"),
        ("[1, 2.0, {a: b}]", [1, 2.0, {"a": "b"}]),
    ],
)
def test_a_value_is_what_it_looks_like(text, value):
    found = parse(f"k: {text}", "x")["k"]
    assert found == value
    assert isinstance(found, type(value)) if isinstance(value, list | dict) else type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3", "x.yaml:4: key 'c' was given before, on line 3; keep one of the two"),
        ("a: 1\n'a': 2", "x.yaml:2: key 'a' was given before, on line 1; keep one of the two"),
        ("a: &n 1\nb: *n", "x.yaml:2: alias '*n' is not supported; write the value again or use 'base:'"),
        ("\na: !!python/object:os.system x", "x.yaml:2: tag 'tag:yaml.org,2002:python/object:os.system' is not supp"),
        ("a: !x 1", "x.yaml:1: tag '!x' is not supported; write a plain value"),
        ("a: [1", "x.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- 1", "x.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", "x.yaml:2: not valid YAML: expected a single document in the stream, but found another"),
        ("? [1]\n: 2", "x.yaml:1: a key must be a plain word, not a list or a section"),
        ("[" * 5000, "x.yaml:1: nested more than 32 deep"),
        ("{a: " * 5000, "x.yaml:1: nested more than 32 deep"),
        ("a: 1\nb: \x01", "x.yaml:2: character '\\x01' is not allowed in YAML"),
        ("a: " + "9" * 5000, "x.yaml:1: a number of 5000 digits; write a shorter one"),
        ("a: b: c", "x.yaml:1: not valid YAML: mapping values are not allowed here"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


AWKWARD = [
    "1e-4",
    "yes",
    "no",
    "null",
    "~",
    "",
    "12:30",
    "0x10",
    "a: b",
    "- a",
    "# x",
    "!x",
    "*x",
    "a\nb",
    "tab\t",
    " lead",
]
AWKWARD += [
    "\u2028",
    "naïve ×",
    "'q'",
    '"',
    1e-5,
    1e22,
    -0.0,
    3.0,
    10**30,
    True,
    None,
    [],
    {},
    [1, ["no", 2.5]],
    "x " * 200,
]


@pytest.mark.parametrize("value", AWKWARD, ids=repr)
def test_a_written_value_reads_back_the_same_here_and_in_stock_readers(value):
    line = f"k: {flow(value)}"
    assert "\n" not in line
    for found in (parse(line, "x")["k"], yaml.safe_load(line)["k"]):
        assert found == value
        assert isinstance(found, type(value)) if isinstance(value, list | dict) else type(found) is type(value)
