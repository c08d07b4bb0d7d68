"""The emoji of `builtin:emoji`: 1,636 concepts in two drawing styles, with captions that ask for the style."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from diffdistill.assets import asset

STYLES = ("noto", "twemoji")
PREFIXES = {"train": "train", "held_out": "held_out", "test": "t10k"}
# Of 1,472 concepts, expected; which ones follows from their hashes, so the number differs a little.
HELD_OUT_PART = 200 / 1472


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
    lines = captions_file(asset("emoji"), PREFIXES[split]).read_text(encoding="utf-8").splitlines()
    return [Emoji(**json.loads(line)) for line in lines]


def captions_file(folder: Path, prefix: str) -> Path:
    """The file of captions beside the images of a split."""
    return folder / f"{prefix}-captions.jsonl"
