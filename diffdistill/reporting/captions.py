"""Texts under pictures: wrapped to the picture's width, cut where they are too long, whatever characters they hold."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from PIL import ImageDraw, ImageFont

from diffdistill.reporting.fonts import Mixed, font_for

SIZE = 11  # pixels
LINE = 14  # from one line to the next
MOST_LINES = 4
CUT = "..."
INK = (40, 40, 40)
LONGEST = 1000  # characters that are looked at: no picture has room for so many

Font = Any  # Pillow's own: FreeType's where it was built with it, else a bitmap of Latin-1


def caption_font(texts: Iterable[str] = ()) -> Font:
    """The font that comes with Pillow, and beside it those of this machine for what it lacks of these texts."""
    base = ImageFont.load_default(SIZE)
    return font_for([printable(text, base) for text in texts], base, SIZE)


def printable(text: str, font: Font) -> str:
    """`text` in one line of characters that the font can be asked for; others become a question mark."""
    seen = (character for character in text[:LONGEST] if not "\ufe00" <= character <= "\ufe0f")  # kinds of a picture
    kinds = [(unicodedata.category(character), character) for character in seen]
    spaced = "".join(" " if kind == "Cc" or kind[0] == "Z" else character for kind, character in kinds if kind != "Cf")
    encoding = "utf-8" if isinstance(font, ImageFont.FreeTypeFont | Mixed) else "latin-1"
    return " ".join(spaced.encode(encoding, "replace").decode(encoding).split())


def wrapped(text: str, width: int, font: Font) -> list[str]:
    """At most `MOST_LINES` lines no wider than `width` pixels (a single character may be); the rest is cut off."""
    lines: list[str] = []
    line = ""
    for word in printable(text, font).split():
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(line) > 1:
            head = _fitting(line, width, font)
            lines.append(line[:head])
            line = line[head:]
    lines += [line] if line else []
    if len(lines) <= MOST_LINES:
        return lines
    last = lines[MOST_LINES - 1]
    while last and font.getlength(last + CUT) > width:
        last = last[:-1]
    return [*lines[: MOST_LINES - 1], last.rstrip() + CUT]


def _fitting(text: str, width: int, font: Font) -> int:
    """How many characters of a text that is too long fit, at least one."""
    wider = bisect_right(range(2, len(text)), width, key=lambda count: font.getlength(text[:count]))
    return 1 + wider


def draw_caption(canvas: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], font: Font) -> None:
    """The lines from the top left corner `place` down, dark on what is there."""
    for number, line in enumerate(lines):
        left, top = place[0], place[1] + number * LINE
        if not isinstance(font, Mixed):
            canvas.text((left, top), line, fill=INK, font=font)
            continue
        baseline, x = top + font.base.getmetrics()[0], float(left)
        for own, run in font.runs(line):
            canvas.text((x, baseline), run, fill=INK, font=own, anchor="ls")
            x += own.getlength(run)
