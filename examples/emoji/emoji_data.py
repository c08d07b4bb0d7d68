"""The bundled emoji: 1,636 concepts in two drawing styles, with captions that ask for the style in words."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffdistill.assets import asset
from diffdistill.data.idx import find_pairs, read_array
from diffdistill.data.source import Encoded, pick_split

STYLES = ("noto", "twemoji")
# Of 1,472 concepts, expected; which ones follows from their hashes, so the number differs a little.
HELD_OUT_PART = 200 / 1472
PAIRS = {"emoji_pairs": "noto", "emoji_pairs_twemoji": "twemoji"}


@dataclass(frozen=True)
class Emoji:
    """A row of `assets/emoji/*-captions.jsonl`; `text` is the caption, `a STYLE style emoji of SHORT NAME`."""

    text: str
    style: str
    name: str
    category: str
    codepoint: str

    @property
    def plain(self) -> str:
        """The caption without its style: `an emoji of SHORT NAME`."""
        return without_style(self.text, self.style)


def without_style(text: str, style: str) -> str:
    """`a noto style emoji of cow` -> `an emoji of cow`."""
    return text.replace(f"a {style} style emoji", "an emoji")


def held_out_style(codepoint: str) -> str | None:
    """The style in which a concept of the training set is held out, or None: by the SHA-256 of its code point alone.

    The other style of such a concept stays in `train`, so a model has seen what the concept is, never in this style.
    """
    digest = hashlib.sha256(codepoint.encode()).digest()
    held = int.from_bytes(digest[:8], "big") < HELD_OUT_PART * 2**64
    return STYLES[digest[8] % 2] if held else None


def emoji_rows(split: str = "train") -> list[Emoji]:
    """Captions and their parts, a row for each image of `builtin:emoji` in the same order.

    split: `train`, `held_out` (a style that was kept from `train`, of concepts that are there in the other) or `test`
    (concepts that are in neither).
    """
    lines = captions_file(asset("emoji"), prefix_of(split)).read_text(encoding="utf-8").splitlines()
    return [Emoji(**json.loads(line)) for line in lines]


def prefix_of(split: str) -> str:
    """How the names of a split's files begin; DataError if there is no such split."""
    return pick_split(split, find_pairs(asset("emoji")), "builtin:emoji")


def captions_file(folder: Path, prefix: str) -> Path:
    """The file of captions beside the images of a split."""
    return folder / f"{prefix}-captions.jsonl"


def emoji_pairs(split: str, want: str) -> list[tuple[Encoded, Encoded, str]]:
    """(wanted, other, plain caption) for each concept of the split that is there in both styles; images as PNG.

    Of `held_out` the other style lies in `train`.
    """
    pictures: dict[str, dict[str, tuple[Emoji, np.ndarray]]] = {}
    for part in ("held_out", "train") if split == "held_out" else (split,):
        pixels = read_array(asset(f"emoji/{prefix_of(part)}-images-idx4-ubyte.xz"))
        for row, image in zip(emoji_rows(part), pixels, strict=True):
            if part == split or row.codepoint in pictures:
                pictures.setdefault(row.codepoint, {})[row.style] = row, image
    pairs: list[tuple[Encoded, Encoded, str]] = []
    for styles in pictures.values():
        if len(styles) == len(STYLES):
            win, lose = (styles[style] for style in (STYLES if want == STYLES[0] else STYLES[::-1]))
            pairs.append(((win[0].text, _png(win[1])), (lose[0].text, _png(lose[1])), win[0].plain))
    return pairs


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
