"""Bundled sets: a folder of IDX files with a `manifest.json` that says what they must be."""

import json
from dataclasses import replace

from diffdistill.assets import bundled, resolve_builtin
from diffdistill.data.idx import find_pairs, read_folder
from diffdistill.data.source import Source, pick_split
from diffdistill.errors import DataError
from diffdistill.files import read_json, sha256


def read_builtin(name: str, split: str) -> Source:
    """Reads `builtin:NAME`; DataError when it is no data set, or differs from its manifest."""
    folder = resolve_builtin(name)
    if not folder.is_dir() or not find_pairs(folder):
        sets = ", ".join(f"builtin:{known.name}" for known in bundled() if find_pairs(known))
        raise DataError(f"{name} is no data set: choose one of {sets}")
    manifest = read_json(folder / "manifest.json")
    for file, expected in manifest["files"].items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected["sha256"]:
            raise DataError(f"the bundled {path} is missing or damaged: install the package again")
    source = read_folder(folder, name, split, tuple(manifest.get("class_names", ())) or None)
    captions = folder / f"{pick_split(split, find_pairs(folder), name)}-captions.jsonl"
    if not captions.is_file():
        return source
    lines = captions.read_text(encoding="utf-8").splitlines()
    return replace(source, texts=tuple(json.loads(line)["text"] for line in lines))
