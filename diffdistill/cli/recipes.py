"""The shipped configs: what each does in a line, and what it costs, as their own comments say."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Any

from diffdistill.config.loader import configs_folder, given_in
from diffdistill.files import read_text

NARROW, WIDE = 80, 160  # columns of the list
BATCH = {"train": 64, "distill": 64, "align": 16}  # where a recipe says none; the settings', which a test compares


@dataclass(frozen=True)
class Recipe:
    """name: as CONFIG. verb: whose. size: steps and images or pairs in each. line: the first sentence of its comment.
    cost: what that says of it, or "".
    """

    name: str
    verb: str
    size: str
    line: str
    cost: str


def names() -> list[str]:
    """Of all recipes; parts of others (`_base`) are none."""
    folder = configs_folder()
    files = (file for file in folder.rglob("*.yaml") if not file.stem.startswith("_base"))
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def recipes() -> Iterator[Recipe]:
    for name in names():
        comment, given = head(read_text(configs_folder() / f"{name}.yaml")), given_in(name)
        verb = verb_of(given)
        size = f"{given.get('max_train_steps', 1000):,} x {given.get('train_batch_size', BATCH[verb])}"
        yield Recipe(name, verb, size, first_sentence(comment), cost(comment))


def head(text: str) -> str:
    """The comment that a file begins with, on one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def first_sentence(comment: str) -> str:
    """Up to a full stop that ends a sentence: not that of a number, nor one before a small letter.

    >>> first_sentence("SiD, alpha 1.2. Source: 2404.04057."), first_sentence("As e.g. in it")
    ('SiD, alpha 1.2', 'As e.g. in it')
    """
    return re.split(r"[.:;] (?=[A-Z(])", f"{comment} ", maxsplit=1)[0].strip().rstrip(".")


def cost(comment: str) -> str:
    """What a comment says of cost or time; "" where it says nothing.

    >>> cost("A. Cost: 300 M images. Expected: FID 1.74."), cost("The best, in fifty minutes of one CPU thread: more")
    ('300 M images', 'fifty minutes of one CPU thread')
    >>> cost("A. Cost and figures: README.md.")
    ''
    """
    found = re.search(r"\bCost: (.+?)(?=[.;] |\.?$)", comment)
    found = found or re.search(r"((?:\w+ )?(?:minutes|hours?|days) (?:of|on) [\w -]+)", comment)
    return re.sub(r"^(and|for) ", "", found[1]) if found else ""


def verb_of(given: Mapping[str, Any]) -> str:
    """By the keys that only one verb's settings have."""
    return "align" if "model" in given else "distill" if "method" in given else "train"


def listed(rows: Iterable[Recipe]) -> str:
    """A line a recipe: name, verb, steps and batch, cost, what it is; cut to the width of a terminal."""
    rows = list(rows)
    width = min(max(get_terminal_size((WIDE, 24)).columns, NARROW), WIDE)
    columns = [("CONFIG", "verb", "steps x batch"), *((row.name, row.verb, row.size) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    words = ["what it is (cost)"] + [cut(row, width - sum(widths) - 6) for row in rows]
    return "\n".join(
        f"{name:<{widths[0]}}  {verb:<{widths[1]}}  {size:>{widths[2]}}  {rest}".rstrip()
        for (name, verb, size), rest in zip(columns, words, strict=True)
    )


def cut(row: Recipe, room: int) -> str:
    """The line and, in brackets, the cost, in so many letters: the line is what gives way."""
    told = f" ({row.cost})" if row.cost and len(row.cost) <= room // 2 else ""
    left = max(room - len(told), 12)
    line = row.line if len(row.line) <= left else f"{row.line[: left - 3].rstrip()}..."
    return line + told
