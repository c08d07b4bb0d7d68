"""What a model's classes are called: by its record, or by the bundled set that it says it was trained on."""

from collections.abc import Mapping
from typing import Any

from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import DataError
from diffdistill.files import read_json


def class_names(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in the order of the labels; None where nobody says them. metadata: content of diffdistill.json.

    >>> class_names({"class_names": ["cat", "dog"]})
    ('cat', 'dog')
    >>> class_names({"num_classes": 10, "data": {"path": "builtin:fashion_mnist"}})[:2]
    ('T-shirt/top', 'Trouser')
    """
    if metadata.get("class_names"):
        return tuple(map(str, metadata["class_names"]))
    path = (metadata.get("data") or {}).get("path")
    if not isinstance(path, str) or not is_builtin(path):
        return None
    try:
        manifest = resolve_builtin(path) / "manifest.json"
        names = read_json(manifest).get("class_names") if manifest.is_file() else None
    except (DataError, OSError, ValueError):  # a set of another version
        return None
    return tuple(names) if names and len(names) == metadata.get("num_classes") else None
