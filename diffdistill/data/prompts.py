"""Prompt files: text, CSV or JSON lines, in UTF-8 or with a byte order mark."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffdistill.data.text import HALVED, Row, csv_rows, is_halved, json_rows, read_text
from diffdistill.errors import DataError

COLUMNS = ("prompt", "text")  # the first that is there
LONGEST = 20_000  # characters of a prompt
MOST_SEED = 2**32 - 1
"""The highest seed of images: torch's generator on the CPU looks at 32 bits, so seeds above repeat those below."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """One text to draw; `negative` and `seed` are None where the file leaves them to the command."""

    text: str
    negative: str | None = None
    seed: int | None = None


def read_prompts(file: str | Path) -> tuple[Prompt, ...]:
    """The prompts of FILE, in its order.

    `.txt` (or no suffix): one prompt a line. `.csv`: a header with `prompt` (or `text`), and perhaps `negative_prompt`
    and `seed`. `.jsonl`: objects with the same keys. Other columns and keys are passed over; prompts lose the white
    space around them. Lines end with LF, CRLF or CR.
    Raises DataError, with the line's number, for an empty prompt, a line that is broken and bytes that are no text.
    """
    path = Path(file)
    readers = {"": _lines, ".txt": _lines, ".csv": _csv_rows, ".jsonl": _json_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"'{file}' is no prompt file: give .txt (one prompt a line), .csv or .jsonl")
    prompts = tuple(_prompt(row, f"line {line} of '{file}'") for line, row in reader(read_text(path), str(file)))
    if not prompts:
        raise DataError(f"'{file}' holds no prompt: write one a line")
    return prompts


def given_prompts(text: str | None, file: str | None) -> tuple[Prompt, ...] | None:
    """What `--prompt TEXT` or `--prompts FILE` names; None where neither is given."""
    if text is not None:
        return (Prompt(text),)
    return None if file is None else read_prompts(file)


def without_texts(data: str) -> str:
    """What is said of images that a model of texts is to be distilled on, and that have no captions."""
    return (
        f"'{data}' has no texts, and the teacher draws texts; give parquet with a column 'text', a folder with "
        "metadata.jsonl, or prompts alone (data.prompts)"
    )


def problem_of(text: str) -> str | None:
    """What keeps a text from being a prompt, in words; None if nothing does."""
    if not text.strip():
        return "is empty"
    if len(text) > LONGEST:
        return f"has {len(text):,} characters, and a model reads a few hundred at most"
    if is_halved(text):
        return HALVED
    return None


def spread(values: Sequence[T], count: int) -> list[T]:
    """`count` of the values, evenly spaced, in their order; all, where there are no more. Captions may be sorted."""
    count = min(count, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def digest_of(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of texts, negative texts and seeds, as JSON lines: which prompts a figure was measured on."""
    return hashlib.sha256("".join(json.dumps(astuple(p)) + "\n" for p in prompts).encode()).hexdigest()


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    text = next((row[name] for name in COLUMNS if name in row), None)
    if not isinstance(text, str):
        raise DataError(f"{where} has no 'prompt': give every line its text")
    negative, seed = row.get("negative_prompt"), row.get("seed")
    if not isinstance(negative, str | None):
        raise DataError(f"{where} has the negative_prompt {negative!r}: write a text, or leave it out")
    for name, value in (("prompt", text), ("negative_prompt", negative or "none")):
        problem = problem_of(value)
        if problem is not None:
            raise DataError(f"{where}: the {name} {problem}; write a text or take the line out")
    if isinstance(seed, str):
        seed = int(seed) if re.fullmatch(r"\d{1,18}", seed.strip(), re.ASCII) else seed.strip() or None
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED):
        raise DataError(f"{where} has the seed {seed!r}: seeds are whole numbers >= 0, up to {MOST_SEED}")
    return Prompt(text.strip(), None if negative is None else negative.strip(), seed)


def _lines(text: str, _name: str) -> Iterator[Row]:
    # Not str.splitlines: it also ends lines at characters that a prompt may hold, such as U+2028.
    for line, words in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        yield line, {"prompt": words}


def _json_rows(text: str, name: str) -> Iterator[Row]:
    return json_rows(text, name, '{"prompt": "..."}')


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    for line, row in csv_rows(text, name, COLUMNS, "prompt,negative_prompt,seed"):
        yield line, {key: value for key, value in row.items() if value or key in COLUMNS}
