"""Bundled sets: a folder of IDX files with a `manifest.json` that says what they must be."""

import hashlib
import json

from diffdistill.assets import asset, resolve_builtin
from diffdistill.data.idx import read_folder
from diffdistill.data.source import Source
from diffdistill.errors import DataError


def read_builtin(name: str, split: str) -> Source:
    """Reads `builtin:NAME`; DataError when it is no data set, or differs from its manifest."""
    folder = resolve_builtin(name)
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        sets = sorted(path.parent.name for path in asset(".").glob("*/manifest.json"))
        raise DataError(f"{name} is no data set: choose one of {', '.join(f'builtin:{known}' for known in sets)}")
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    for file, expected in manifest["files"].items():
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
            raise DataError(f"the bundled {path} is missing or damaged: install the package again")
    return read_folder(folder, name, split, tuple(manifest["class_names"]))
