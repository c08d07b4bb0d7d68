"""What the package says of itself is whole: no text is cut in two, and none ends in the middle of a sentence."""

import argparse
import ast
import json
import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from diffdistill.cli import front as cli
from diffdistill.cli.config_tool import keys
from diffdistill.config.align import Align
from diffdistill.config.complaints import models_in
from diffdistill.config.schema import Distill, Train

# A text that ends so goes on somewhere else.
DANGLING = re.compile(
    r"(\b(a|an|and|as|at|beside|but|from|if|is|of|or|than|that|the|which|whose)|[,:;/(=+-])$",
    re.IGNORECASE,
)
PAIRS = {"(": ")", "[": "]", "{": "}"}


def problem_of(text: str) -> str | None:
    """What shows that a text is cut; None if nothing does."""
    if not text.strip():
        return "is empty"
    if text != text.strip():
        return "has white space around it"
    if DANGLING.search(text):
        return f"ends with '{text.split()[-1]}'"
    bare = re.sub(r"(?<!\w)'[^']*'", "", text)
    for left, right in PAIRS.items():
        # Half-open intervals, such as [0, 1), close with the other kind.
        if bare.count(left) != bare.count(right) and not re.search(r"[\[(][^\])]*,[^\])]*[\])]", bare):
            return f"has {bare.count(left)} '{left}' and {bare.count(right)} '{right}'"
    return None


@pytest.mark.parametrize(
    "text", ["none: 1; dmd: 1 ", "the law of", "a list (of", "", "weights,", "1 / sqrt(||g||^2 +"]
)
def test_a_cut_text_is_seen(text):
    assert problem_of(text) is not None


def test_a_whole_text_is_not_complained_of():
    assert problem_of("none: 1; dmd: 1 / mean|x0 - D_T| per sample, in [0, 1)") is None


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and all that it is made of."""
    yield model
    for info in model.model_fields.values():
        for inner in models_in(info.annotation):
            yield from sections(inner)


@pytest.mark.parametrize("model", [Train, Distill, Align])
def test_descriptions_of_settings_are_whole(model):
    seen = 0
    for section in {*sections(model)}:
        for name, info in section.model_fields.items():
            texts = [info.description, *(getattr(more, "description", None) for more in info.metadata)]
            for text in texts:
                if text is not None:
                    seen += 1
                    assert problem_of(text) is None, f"{section.__name__}.{name} {problem_of(text)}: {text!r}"
    assert seen > 20


@pytest.mark.parametrize("model", [Train, Distill, Align])
def test_what_sections_say_of_themselves_has_no_python(model):
    """Their docstrings have examples, which are for `help(...)`."""
    assert any(">>> " in (section.__doc__ or "") for section in sections(Distill))
    told = [*(line for line in keys(model) if line[0] == "#"), json.dumps(model.model_json_schema())]
    assert [text for text in told if ">>> " in text] == []


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)


@pytest.mark.parametrize("verb", sorted(cli.verbs()))
def test_helps_of_flags_are_whole(verb):
    parser = cli.parser_of(cli.verbs()[verb])
    for text in (parser.description, cli.verbs()[verb].summary):
        assert problem_of(text or "") is None, text
    for action in actions(parser):
        name = "/".join(action.option_strings) or action.dest
        if action.help is not argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction):
            assert action.help or action.choices, f"{verb} {name} has no help"
            assert not action.help or problem_of(action.help) is None, (
                f"{verb} {name} {problem_of(action.help)}: {action.help!r}"
            )


def is_text(node: ast.AST | None) -> bool:
    """A literal text, or texts put together."""
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def stray_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """`(line, text)` of statements that are a text alone and no documentation.

    Documentation stands first in a module, class or function, or after the assignment of something that is no text:
    after a text it is the rest of it, cut off.
    """
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if not isinstance(statements, list):  # of a lambda, an expression
                continue
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            for before, statement in zip([None, *statements], statements, strict=False):
                if not isinstance(statement, ast.Expr) or not is_text(statement.value):
                    continue
                first = documented and block == "body" and before is None
                of_other = (
                    isinstance(node, ast.Module | ast.ClassDef)
                    and isinstance(before, ast.Assign | ast.AnnAssign)
                    and not is_text(before.value)
                )
                if not first and not of_other:
                    yield statement.lineno, ast.unparse(statement)[:80]


def test_no_text_stands_alone_but_documentation(root):
    files = sorted((root / "diffdistill").rglob("*.py"))
    assert len(files) > 150
    found = [
        f"{file.relative_to(root)}:{line}: {text}"
        for file in files
        for line, text in stray_texts(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


def test_a_text_cut_off_by_the_end_of_a_line_is_seen():
    cut = 'HELP = "none: 1; dmd: 1 "\n"/ sqrt(x)"\nTable = dict[str, int]\n"""Rows by name."""\n'
    assert [line for line, _ in stray_texts(ast.parse(cut))] == [2]
    inside = 'def f():\n    """What it does."""\n    x = 1\n    "a comment"\n    return x\n'
    assert [line for line, _ in stray_texts(ast.parse(inside))] == [4]
