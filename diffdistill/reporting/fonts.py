"""Fonts for what Pillow's own lacks, so that a caption in any script is read and no boxes are seen.

They are asked of fontconfig, else looked for in the folders where systems keep them, else taken from matplotlib where
that is installed. A character that no font here has stays a box, which is said once.
"""

import importlib.util
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFont

FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts",
    "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts",
)  # fmt: skip
ENDINGS = (".ttf", ".otf", ".ttc")
# Those with many scripts come first; of others, in the order of their names, so many are opened.
WIDE = ("notosanscjk", "pingfang", "hiragino", "msyh", "simsun", "malgun", "arialuni", "unifont", "notosans",
        "notonaskh", "notoemoji", "symbola", "seguisym", "dejavusans", "arial")  # fmt: skip
MOST = 300
NOWHERE = "\U0010ffff"  # a place that no font may fill: its picture is that of what a font lacks

Font = Any


class Mixed:
    """A font with others for single characters. others: by the character that the first one lacks."""

    def __init__(self, base: Font, others: dict[str, Font]):
        self.base, self.others = base, others

    def runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """Parts of a text, each of one font; spaces and marks on letters stay with what is before them."""
        font, run = self.base, ""
        for character in text:
            own = font if run and follows(character) else self.others.get(character, self.base)
            if own is not font and run:
                yield font, run
                run = ""
            font, run = own, run + character
        if run:
            yield font, run

    def getlength(self, text: str) -> float:
        return sum(font.getlength(run) for font, run in self.runs(text))


def font_for(texts: Iterable[str], base: Font, size: int) -> Font:
    """`base`, with other fonts beside it where they are needed and found."""
    if not isinstance(base, ImageFont.FreeTypeFont):
        return base
    wanted = sorted({character for text in texts for character in text if not follows(character)})
    missing = [character for character in wanted if not character.isascii() and not has(base, character)]
    found = {character: font for character in missing if (font := _font_with(character, size)) is not None}
    lacking = "".join(character for character in missing if character not in found)
    if lacking:
        _say_lacking()
    return Mixed(base, found) if found else base


def follows(character: str) -> bool:
    """Whether a character has no place of its own: spaces, and marks on the letter before."""
    return unicodedata.category(character)[0] in "ZM"


def has(font: Font, character: str) -> bool:
    """Whether a font has a picture for a character, other than the one for what it lacks."""
    return _drawn(font, character) != _drawn(font, NOWHERE)


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask: Image.core.ImagingCore = font.getmask(character)
    return mask.size, bytes(mask)


@cache
def _font_with(character: str, size: int) -> Font | None:
    for file in (*_of_fontconfig(character), *_of_folders()):
        font = _opened(file, size)
        if font is not None and has(font, character):
            return font
    return None


@cache
def _opened(file: Path, size: int) -> Font | None:
    try:
        return ImageFont.truetype(str(file), size)
    except (OSError, ValueError):  # coloured pictures of one size alone, or a damaged file
        return None


def _of_fontconfig(character: str) -> list[Path]:
    """Files of fonts that have a character, as fontconfig says, the plain ones first."""
    command = shutil.which("fc-list")
    if command is None:
        return []
    try:
        pattern = f":charset={ord(character):x}"
        told = subprocess.run([command, pattern, "file"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = told.stdout.decode("utf-8", "replace").splitlines()
    return sorted({Path(line.rstrip().rstrip(":")) for line in lines if line.strip()}, key=_rank)


@cache
def _of_folders() -> tuple[Path, ...]:
    """Files of fonts of this system and of matplotlib, those with many scripts first."""
    folders = [Path(folder).expanduser() for folder in FOLDERS]
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.submodule_search_locations:
        folders.append(Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf")
    files = [file for folder in folders if folder.is_dir() for file in folder.rglob("*")]
    return tuple(sorted((file for file in files if file.suffix.lower() in ENDINGS), key=_rank)[:MOST])


def _rank(file: Path) -> tuple[int, bool, int, str]:
    name = file.stem.lower().replace("-", "").replace("_", "")
    place = next((i for i, wide in enumerate(WIDE) if name.startswith(wide)), len(WIDE))
    slanted = any(word in name for word in ("bold", "italic", "oblique", "mono", "light", "condensed", "serif"))
    return place, slanted, len(name), str(file)


@cache
def _say_lacking() -> None:
    print(
        "warning: captions have characters that no font of this machine has, which are drawn as boxes; install one "
        "with them, as Noto (fonts-noto-cjk, fonts-noto)",
        file=sys.stderr,
    )
