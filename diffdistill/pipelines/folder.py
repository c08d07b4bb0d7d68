"""A model folder in diffusers format: finding, reading and writing it, and its diffdistill.json.

Every file that is read is named with its SHA-256 in `diffdistill.json`, and that file with its own: neither
safetensors nor JSON carries a checksum, so without it one flipped bit, or a setting that was lost, would draw other
pictures in silence.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffdistill import files
from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError
from diffdistill.files import PICKLES, is_hub_id, new_folder, sha256, write_json
from diffdistill.loading import quiet

logger = logging.getLogger(__name__)

METADATA, CARD, INDEX = "diffdistill.json", "README.md", "model_index.json"
CALIBRATION, SIGNAL_LEAK = "calibration.json", "signal_leak.json"
FITTED = (CALIBRATION, SIGNAL_LEAK)  # what `calibrate` puts beside a model; no safetensors, which would be its weights
MARK = "_diffdistill"  # in the index of a model of ours; diffusers passes over private names
SEAL = "own_sha256"  # in diffdistill.json: of all else in it
SINGLE = (".safetensors", ".gguf")
# Of the Hub: a revision (branch, tag, commit, refs/pr/N), and a variant of the weights as diffusers names them.
PINNED = re.compile(r"(?P<id>[^@:]+/[^@:/]+)(@(?P<revision>[\w./-]+))?(:(?P<variant>\w+))?", re.ASCII)
Card = Callable[[dict[str, Any]], str]
"""Makes README.md from the content of `diffdistill.json`."""


def weights_digest(folder: Path) -> str:
    """One SHA-256 over all weights of a model folder: its identity in caches and protocols."""
    weights = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()


def locate(model: str) -> Path:
    """The local folder of MODEL: a path, `builtin:NAME`, or a Hub id (downloaded to the Hub's own cache).

    A Hub id may name a revision, and a variant of the weights: OWNER/NAME@REVISION, OWNER/NAME:fp16, or both.
    """
    with files.reading(model, CheckpointError):
        folder = local(model)
    folder = _download(model) if folder is None else folder
    with files.reading(model, CheckpointError):
        _refuse_pipes(folder)
    return folder


def _refuse_pipes(folder: Path) -> None:
    """CheckpointError for a pipe or a device among the files of a model: reading one may never end."""
    if not os.path.lexists(folder / "model_index.json"):
        return
    for pattern in ("*", "*/*"):  # in place of rglob, which stops at a part that is a link
        for file in folder.glob(pattern):
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise CheckpointError(
                    f"'{file}' is a pipe or a device, and of a model folder only files are read; make or fetch the "
                    f"model again"
                )


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
    if path.is_file() and path.suffix in SINGLE:
        raise CheckpointError(
            f"'{model}' is one file of weights, and a model is a folder; make one of it: diffdistill convert "
            f"'{path.name}' --config PIPELINE --out DIR"
        )
    if not is_hub_id(pinned(model)[0]):
        absent = "" if path.exists() else ", there is nothing of that name"
        raise CheckpointError(
            f"model '{model:.200}' is not a diffusers folder{absent}; give a folder with model_index.json, "
            f"builtin:NAME or a Hub id OWNER/NAME[@REVISION][:VARIANT]"
        )
    return None


def pinned(model: str) -> tuple[str, str | None, str | None]:
    """OWNER/NAME, the revision and the variant of a Hub id; what was not named is None.

    >>> pinned("owner/name@refs/pr/3:fp16"), pinned("owner/name")
    (('owner/name', 'refs/pr/3', 'fp16'), ('owner/name', None, None))
    """
    found = PINNED.fullmatch(model)
    return (model, None, None) if found is None else (found["id"], found["revision"], found["variant"])


def fetched(model: str, patterns: list[str], ignore: list[str] | None = None) -> Path:
    """The files of a Hub id, which may be pinned, that match the patterns; CheckpointError where none comes."""
    from huggingface_hub import snapshot_download

    name, revision, _ = pinned(model)
    try:
        with quiet():
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=ignore or [])
            )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"'{model}' is no local folder and could not be fetched from the Hub ({reason}); check name, revision and "
            f"the network"
        ) from error


def _download(model: str) -> Path:
    """The pipeline of a Hub id as diffusers fetches it: the parts of its index, one precision of each, no pickle."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    name, revision, variant = pinned(model)
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        # diffusers fetches what its own classes load; what is ours besides, and what our record names, comes after.
        with quiet():
            folder = Path(DiffusionPipeline.download(name, use_safetensors=True, variant=variant, **at))
            snapshot_download(name, allow_patterns=[METADATA, *FITTED], **at)
            named = files.read_json(folder / METADATA).get("sha256") if _has_record(folder) else None
            if missing := [file for file in named or () if not (folder / file).is_file()]:
                snapshot_download(name, allow_patterns=missing, **at)
        return folder
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"model '{model}' is no local folder and could not be fetched from the Hub ({reason}); check the name and "
            f"the network, and that it is a pipeline with safetensors weights"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder; CheckpointError where it is absent, damaged or no object."""
    try:
        content = files.read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"model folder '{path.parent}' has no {path.name}; it is incomplete, make or fetch it again"
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not readable JSON ({files.reason_of(error)}); make or fetch the model folder again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' is no JSON object; make or fetch the model folder again")
    return content


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder that is read again, by its path in it.

    What `calibrate` puts beside a model has a digest of itself, and may be made anew.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in files
        if file.relative_to(folder).as_posix() not in (METADATA, CARD, *FITTED)
    }


def sealed(metadata: dict[str, Any]) -> dict[str, Any]:
    """The content of diffdistill.json with a digest of itself."""
    return {key: value for key, value in metadata.items() if key != SEAL} | {SEAL: _seal(metadata)}


def is_whole(metadata: dict[str, Any]) -> bool:
    """Whether a sealed record is as it was written; one of an older version, without a seal, is taken on trust."""
    return metadata.get(SEAL, _seal(metadata)) == _seal(metadata)


def _seal(metadata: dict[str, Any]) -> str:
    content = {key: value for key, value in metadata.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _has_record(folder: Path) -> bool:
    """Whether there is a diffdistill.json, be it a link to nowhere: that is damage, and not a foreign folder."""
    return os.path.lexists(folder / METADATA)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The content of diffdistill.json, its digests checked; empty where there is none. CheckpointError for damage."""
    if not _has_record(folder):
        _check_unmarked(folder)
        return {}
    metadata = read_json(folder / METADATA)
    digests = metadata.get("sha256", {})
    if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        raise CheckpointError(f"'{folder / METADATA}' is no record of a model folder; make or fetch the folder again")
    if not is_whole(metadata):
        raise CheckpointError(
            f"'{folder / METADATA}' is damaged or was changed: its {SEAL} is another; make or fetch the folder again, "
            f"or take {SEAL} out of it if the change was yours"
        )
    for name, expected in digests.items():
        if not _is_file(folder / name):
            raise CheckpointError(f"model folder '{folder}' lacks {name[:80]!r}; make or fetch it again")
        if sha256(folder / name) != expected:
            raise CheckpointError(
                f"'{folder / name}' is damaged: its SHA-256 is not the one in {METADATA}; make or fetch it again"
            )
    return metadata


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_unmarked(folder: Path) -> None:
    """What a model of ours that lost diffdistill.json means, by a mark in its index. Any other folder without one is
    a foreign model, and a whole one.

    A student of several steps would be drawn in one: CheckpointError. The others are whole networks of diffusers but
    for their null class and their digests: a warning.
    """
    role = read_json(folder / INDEX).get(MARK) if (folder / INDEX).is_file() else None
    if role is None:
        return
    lost = f"model folder '{folder}' has lost its {METADATA}, which {INDEX} says it had"
    if role == "student":
        raise CheckpointError(
            f"{lost}; make or fetch it again, or take {MARK} out of {INDEX} if you made another model of it"
        )
    logger.warning("%s: it is read without its null class and without its checksums", lost)


# A path from the root or a home, of this or another system, among words; what follows its last separator stays.
PLACE = re.compile(r"(?<![\w/.\\-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"`,;()/\\]+[/\\])+")


def published(value: Any) -> Any:
    """A value for a model folder, which others get: of a path of this machine in it, only the last part stays."""
    if isinstance(value, dict):
        return {published(key): published(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [published(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~", "\\\\")) or re.match(r"[A-Za-z]:[/\\]", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return PLACE.sub("", value)


def write_model(
    folder: Path, write_parts: Callable[[Path], dict[str, Any]], card: Card | None = None, **provenance: Any
) -> None:
    """Write a model folder whole or not at all: its parts, diffdistill.json with their digests, README.md.

    write_parts: fills a folder and returns the content of its diffdistill.json.
    """
    with new_folder(folder) as staged:
        metadata = write_parts(staged)
        write_json(staged / INDEX, read_json(staged / INDEX) | {MARK: metadata["role"]})
        metadata |= {"sha256": digests_of(staged), **published(provenance)}
        if card is not None:
            (staged / CARD).write_text(card(metadata), "utf-8")
        write_json(staged / METADATA, sealed(metadata))


def forget_origin(config: Path) -> dict[str, Any]:
    """Take the path it was made from out of a JSON file of diffusers; a model must not depend on where it was trained.

    Returns what is left in the file.
    """
    settings = {key: value for key, value in read_json(config).items() if key != "_name_or_path"}
    write_json(config, settings)
    return settings
