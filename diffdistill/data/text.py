"""Text files of data: UTF-8 or with a byte order mark; JSON lines and CSV."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from diffdistill.data.looking import refuse
from diffdistill.errors import DataError
from diffdistill.files import Twice, parse_json, read_bounded

# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MOST_TEXT, MOST_LINES = 1 << 27, 2_000_000  # bytes and lines of a table or a list, kept in memory as a whole
Row = tuple[int, dict[str, Any]]


def read_text(path: Path) -> str:
    """A file as text with LF at the ends of lines; UTF-8, or what its byte order mark says. DataError otherwise.

    Latin-1 and its kin are refused: any bytes are valid there, so a wrong guess would draw other words unnoticed.
    """
    try:
        data = read_bounded(path, MOST_TEXT)
    except ValueError as error:
        raise DataError(f"'{path}' is no list that fits, {error}: is it a text? give it in parts") from error
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}): check the path and its rights") from error
    return decoded(data, str(path))


def decoded(data: bytes, path: str) -> str:
    """The bytes of the file `path` as text; see `read_text`."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\n|\r", data[: error.start])) + 1
        where = f"line {line} of '{path}'" if encoding.startswith("utf-8") else f"'{path}'"
        raise DataError(
            f"{where} is not {encoding.removesuffix('-sig').upper()} (byte {error.start}): save the file as UTF-8"
        ) from error
    if text.count("\n") + text.count("\r") > MOST_LINES:
        raise DataError(f"'{path}' has more than {MOST_LINES:,} lines: give it in parts")
    if "\0" in text:
        raise DataError(f"'{path}' holds zero bytes, as UTF-16 without a byte order mark has: save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_or_error(data: bytes | Path, path: str) -> str | DataError:
    """The text of a file, or of its bytes, or in its place what is wrong with it."""
    try:
        return read_text(data) if isinstance(data, Path) else decoded(data, path)
    except DataError as error:
        return error


def json_rows(text: str, name: str, example: str) -> Iterator[Row]:
    """Number and object of each line that is not blank; DataError, with the number, for a line that is no object."""
    # Not str.splitlines: it also ends lines at characters that a text may hold, such as U+2028.
    for line, words in enumerate(text.split("\n"), start=1):
        if not words.strip():
            continue
        try:
            row = parse_json(words, unique=True)
        except Twice as error:
            refuse(f"line {line} of '{name}' has {error}: which counts? leave one", f"twice in a line of {name}")
            continue
        except ValueError as error:
            refuse(f"line {line} of '{name}' is not JSON ({error}): write one object a line", f"line of {name}")
            continue
        if not isinstance(row, dict):
            refuse(f"line {line} of '{name}' is no JSON object: write {example}", f"line of {name}")
            continue
        if "\\u" in words and is_halved(json.dumps(row, ensure_ascii=False)):
            refuse(
                f"line {line} of '{name}' {HALVED}: write the character whole, or take the line out",
                f"halved line of {name}",
            )
            continue
        yield line, row


def csv_rows(text: str, name: str, needs: tuple[str, ...], example: str) -> Iterator[Row]:
    """Number and fields by the name of their column, in lower case, of each line that is not blank; None where a line
    ends before them.

    DataError, with the line's number, for a header with none of the columns `needs`, for a line of more fields than
    the header, as one has whose text has a comma and no quotation marks, and for what is no CSV.
    """
    reader = csv.reader(io.StringIO(text), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            here, line = line, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = _header(row, name, needs, example)
                continue
            if any(field[:1].isspace() and field.lstrip().startswith('"') for field in row):
                refuse(f"line {here} of '{name}' has a space before a quotation mark: take it out", f"line of {name}")
            if len(row) > len(header):
                refuse(
                    f"line {here} of '{name}' has {len(row)} fields and the header {len(header)}: put quotation marks "
                    "around a text with commas",
                    f"line of {name}",
                )
            yield here, dict(zip_longest(header, row[: len(header)]))
    except csv.Error as error:
        what = "a quotation mark is opened and never closed" if "unexpected end" in str(error) else error
        raise DataError(f"line {line} of '{name}' is not CSV ({what}): mend its quotation marks") from error


def _header(row: list[str], name: str, needs: tuple[str, ...], example: str) -> list[str]:
    header = [column.strip().lower() for column in row]
    if not set(needs) & set(header):
        raise DataError(
            f"line 1 of '{name}' names no column {' or '.join(map(repr, needs))}, only "
            f"{', '.join(map(repr, row[:5]))}: begin with a header such as {example}{_apart(row)}"
        )
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"line 1 of '{name}' names the column {twice!r} twice: leave one of them")
    return header


def _apart(row: list[str]) -> str:
    """What is added where a table seems to have its columns apart by something else than commas."""
    return ", and put commas between the columns" if any(mark in field for field in row for mark in ";\t|") else ""


HALVED = "holds half of a character (a lone surrogate)"


def is_halved(text: str) -> bool:
    """Whether a text was cut inside a character: JSON can say so, no tokenizer and no file can hold it."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_whole(texts: Sequence[str], what: str, name: str, where: Callable[[int], str] = "image {}".format) -> None:
    """DataError for a text that ends in half of a character, which JSON may write and nothing can hold.

    where: what messages call the image of a place.
    """
    for index, text in enumerate(texts):
        if is_halved(text):
            refuse(
                f"{name} has a {what} for {where(index)} that {HALVED}: write the character whole",
                f"halved {what} in {name}",
            )
