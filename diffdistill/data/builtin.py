"""Bundled sets: a folder of IDX files with a `manifest.json` that says what they must be."""

import hashlib
import json

from diffdistill.assets import bundled, resolve_builtin
from diffdistill.data.idx import find_pairs, read_folder
from diffdistill.data.source import Source
from diffdistill.errors import DataError


def read_builtin(name: str, split: str) -> Source:
    """Reads `builtin:NAME`; DataError when it is no data set, or differs from its manifest."""
    folder = resolve_builtin(name)
    if not folder.is_dir() or not find_pairs(folder):
        sets = ", ".join(f"builtin:{known.name}" for known in bundled() if find_pairs(known))
        raise DataError(f"{name} is no data set: choose one of {sets}")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for file, expected in manifest["files"].items():
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
            raise DataError(f"the bundled {path} is missing or damaged: install the package again")
    return read_folder(folder, name, split, tuple(manifest["class_names"]))
