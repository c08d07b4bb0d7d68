"""A model folder in diffusers format: finding, reading and writing it, and its diffdistill.json.

Every weights file is named with its SHA-256 in `diffdistill.json`: safetensors carries no checksum, so without it one
flipped bit would load in silence.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffdistill import files
from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError
from diffdistill.files import PICKLES, new_folder, sha256, write_json

METADATA = "diffdistill.json"
Card = Callable[[dict[str, Any]], str]
"""Makes README.md from the content of `diffdistill.json`."""


def weights_digest(folder: Path) -> str:
    """One SHA-256 over all weights of a model folder: its identity in caches and protocols."""
    weights = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()


def locate(model: str) -> Path:
    """The local folder of MODEL: a path, `builtin:NAME`, or a Hub id (downloaded to the Hub's own cache)."""
    with files.reading(model, CheckpointError):
        folder = local(model)
    return _download(model) if folder is None else folder


def local(model: str) -> Path | None:
    """The folder of MODEL where it is one of this machine; None for a Hub id. CheckpointError for what is neither."""
    if is_builtin(model):
        return resolve_builtin(model)
    path = files.expanded(model)
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"'{model}' is a pickle, which can run code when opened; give a diffusers folder with safetensors weights "
            f"('diffdistill convert' makes one of EDM's files)"
        )
    if path.is_dir():
        return path
    # OWNER/NAME is an id of the Hub, unless OWNER is here: then NAME is mistyped, and asking the Hub takes long.
    here = path.exists() or path.parent.exists() or path.is_absolute()
    if here or model.count("/") != 1 or model.startswith((".", "~")):
        raise CheckpointError(
            f"model '{model:.200}' is not a diffusers folder; give a folder with model_index.json, builtin:NAME or a "
            f"Hub id"
        )
    return None


def _download(model: str) -> Path:
    """The pipeline of a Hub id as diffusers fetches it: the parts of its index, one precision of each, no pickle."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        # diffusers fetches what its own classes load; what is ours besides comes with the second call.
        folder = DiffusionPipeline.download(model, use_safetensors=True)
        snapshot_download(model, allow_patterns=[METADATA, "calibration.json"])
        return Path(folder)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"model '{model}' is no local folder and could not be fetched from the Hub ({reason}); check the name and "
            f"the network, and that it is a pipeline with safetensors weights"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder; CheckpointError where it is absent or damaged."""
    try:
        return files.read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"model folder '{path.parent}' has no {path.name}; it is incomplete, make or fetch it again"
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not readable JSON ({files.reason_of(error)}); make or fetch the model folder again"
        ) from error


def read_metadata(folder: Path) -> dict[str, Any]:
    """The content of diffdistill.json, its digests checked; empty where there is none. CheckpointError for damage."""
    metadata = read_json(folder / METADATA) if (folder / METADATA).exists() else {}
    for name, expected in metadata.get("sha256", {}).items():
        if not (folder / name).is_file():
            raise CheckpointError(f"model folder '{folder}' lacks {name}; make or fetch it again")
        if sha256(folder / name) != expected:
            raise CheckpointError(
                f"'{folder / name}' is damaged: its SHA-256 is not the one in {METADATA}; make or fetch it again"
            )
    return metadata


def write_model(
    folder: Path, write_parts: Callable[[Path], dict[str, Any]], card: Card | None = None, **provenance: Any
) -> None:
    """Write a model folder whole or not at all: its parts, diffdistill.json with their digests, README.md.

    write_parts: fills a folder and returns the content of its diffdistill.json.
    """
    with new_folder(folder) as staged:
        metadata = write_parts(staged)
        weights = {str(f.relative_to(staged)): sha256(f) for f in sorted(staged.rglob("*.safetensors"))}
        metadata |= {"sha256": weights, **provenance}
        if card is not None:
            (staged / "README.md").write_text(card(metadata), "utf-8")
        write_json(staged / METADATA, metadata)


def forget_origin(config: Path) -> dict[str, Any]:
    """Take the path it was made from out of a JSON file of diffusers; a model must not depend on where it was trained.

    Returns what is left in the file.
    """
    settings = {key: value for key, value in read_json(config).items() if key != "_name_or_path"}
    write_json(config, settings)
    return settings
