"""Bundled sets, `builtin:NAME`: a folder of IDX files whose `manifest.json` says what they must be and what they hold.

Keys of the manifest, beside `files` with the SHA-256 of each:
    class_names: of the labels, in their order.
    table: name of the JSON lines beside the images, a row an image, `{split}` standing for how a split's files begin;
        the column `text` is the caption.
    pairs: sets of pairs by NAME. One is `{"same": COLUMN, "differ": COLUMN, "values": [A, B], "win": A or B,
        "caption": [PART, INSTEAD], "partners": {SPLIT: OTHER}}`: an image that has A in the column `differ` and one
        that has B, with one value of the column `same`. `caption`: what of the wanted image's text is replaced by
        what, for the text of both. `partners`: in which other split images of a split may find their counterpart.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.assets import BUILTIN, bundled, is_builtin, resolve_builtin
from diffdistill.data.formats import Format
from diffdistill.data.formats.idx import find_pairs, read_array, read_folder
from diffdistill.data.source import Encoded, Pair, Source, pick_split
from diffdistill.errors import DataError
from diffdistill.files import read_json, read_text, sha256

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest.json"


def read_builtin(name: str, _path: Path, split: str) -> Source:
    """The images of a bundled set; DataError when it is no data set, or differs from its manifest."""
    folder = resolve_builtin(name)
    if not folder.is_dir() or not find_pairs(folder):
        sets = ", ".join(f"{BUILTIN}{known.name}" for known in bundled() if find_pairs(known))
        raise DataError(f"{name} is no data set: choose one of {sets}")
    manifest = _checked(folder)
    source = read_folder(name, folder, split, tuple(manifest.get("class_names", ())) or None)
    if "table" not in manifest:
        return source
    prefix = pick_split(split, find_pairs(folder), name)
    return replace(source, texts=tuple(row["text"] for row in _rows(folder, manifest, prefix)))


def read_pairs(name: str, _path: Path, split: str, _left_out: Counter[str]) -> Iterator[Pair]:
    """The pairs that a bundled set declares under that name, in the order of its images."""
    declared = {
        f"{BUILTIN}{pairs}": (folder, pairs)
        for folder in bundled()
        if (folder / MANIFEST).is_file()
        for pairs in read_json(folder / MANIFEST).get("pairs", ())
    }
    if name not in declared:
        raise DataError(f"{name} holds no pairs: choose one of {', '.join(declared)}")
    folder, key = declared[name]
    manifest = _checked(folder)
    rule, images = manifest["pairs"][key], find_pairs(folder)
    own = pick_split(split, images, name)
    groups: dict[Any, dict[str, tuple[dict[str, Any], np.ndarray]]] = {}
    for part in (own, *filter(None, [rule.get("partners", {}).get(own)])):
        for row, image in zip(_rows(folder, manifest, part), read_array(images[part]), strict=True):
            if part == own or row[rule["same"]] in groups:
                groups.setdefault(row[rule["same"]], {})[row[rule["differ"]]] = row, image
    for group in groups.values():
        if all(value in group for value in rule["values"]):
            yield _pair(group, rule)


def _pair(group: dict[str, "tuple[dict[str, Any], np.ndarray]"], rule: dict[str, Any]) -> Pair:
    win, lose = sorted(rule["values"], key=lambda value: value != rule["win"])
    row = group[win][0]
    part, instead = rule["caption"]
    text = row["text"].replace(part.format_map(row), instead)
    return Pair(_encoded(*group[win]), _encoded(*group[lose]), text)


def _encoded(row: dict[str, Any], pixels: "np.ndarray") -> Encoded:
    """As PNG, called by its caption."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return row["text"], file.getvalue()


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest; DataError where a file is not what it says."""
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    for file, expected in manifest["files"].items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected["sha256"]:
            raise DataError(f"the bundled {path} is missing or damaged: install the package again")
    return manifest


def _rows(folder: Path, manifest: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    lines = read_text(folder / manifest["table"].format(split=prefix)).splitlines()
    return [json.loads(line) for line in lines]


FORMAT = Format(
    "builtin", 0, f"{BUILTIN}NAME", lambda data, _: is_builtin(data), read_builtin, f"{BUILTIN}NAME", read_pairs,
    lambda data, _: sorted(resolve_builtin(data).iterdir()),
)  # fmt: skip
