"""A model folder as a copy, in half precision if asked: what `DiffusionPipeline.from_pretrained` and the Hub take."""

import shutil
from pathlib import Path
from typing import Any

import torch

from diffdistill.errors import CheckpointError
from diffdistill.export.source import Source, cast_one, load_tensors
from diffdistill.files import new_folder, read_json, write_json
from diffdistill.loading import weight_files
from diffdistill.parts.one_encoder.publish import FILES
from diffdistill.pipelines.folder import CARD, FITTED, INDEX, METADATA, digests_of, is_whole, sealed, weights_digest
from diffdistill.pipelines.record import DECODERS
from diffdistill.pipelines.text.save import copy_parts

BESIDE = (*FITTED, CARD)
"""Files of a model folder that are neither a part of the pipeline nor the record."""


def copy_folder(source: Source, out: Path, dtype: str | None) -> None:
    """Write `out` whole or not at all: the parts of the pipeline, its adapter, its record with new digests.

    dtype: of every floating number; whole numbers, settings and tokenizers are the same byte for byte.
    """
    with new_folder(out) as staged:
        copy_parts(source.folder, staged, leave=())
        code = FILES if DECODERS in source.record else ()  # of nobody else's model
        for name in (*BESIDE, "lora", *code):
            _copy(source.folder / name, staged / name)
        for folder in sorted({file.parent for file in staged.rglob("*.safetensors")}):
            if dtype is not None:
                _cast_folder(folder, getattr(torch, dtype))
        _rebind(source.folder, staged, dtype)
        if source.record:
            exported: dict[str, Any] = {} if dtype is None else {"exported": {"dtype": dtype}}
            write_json(staged / METADATA, sealed(source.record | {"sha256": digests_of(staged)} | exported))


def _rebind(source: Path, staged: Path, dtype: str | None) -> None:
    """What was fitted to the source is of the copy: the same networks, rounded as `sample --dtype` rounds them.

    A file that is damaged, or was fitted to other weights, stays as it is, and is refused there as it was here.
    """
    present = [staged / name for name in FITTED if (staged / name).is_file()]
    if not present or (was := weights_digest(source)) == (now := weights_digest(staged)):
        return
    for file in present:
        try:
            content = read_json(file)
            fitted = is_whole(content) and content["weights_sha256"] == was
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if fitted:
            called = content["model"] if dtype is None else f"{content['model']}, its weights in {dtype}"
            write_json(file, sealed(content | {"model": called, "weights_sha256": now}))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def _cast_folder(folder: Path, dtype: torch.dtype) -> None:
    """The weights of a part, file by file in its place, and the size that an index of shards says they have."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        state = {name: cast_one(t, dtype, f"{name} of '{folder.name}'") for name, t in load_tensors(file).items()}
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        file.unlink()
        save_file(state, file, metadata=about)
        total += sum(tensor.nbytes for tensor in state.values())
    for index in folder.glob("*.index.json"):
        content = read_json(index)
        if "total_size" in content.get("metadata", {}):
            content["metadata"]["total_size"] = total
            write_json(index, content)


def check_parts(source: Source) -> None:
    """CheckpointError where the index names a network whose folder has no weights."""
    for name, entry in source.index.items():
        folder = source.folder / name
        if isinstance(entry, list) and (folder / "config.json").is_file() and not weight_files(folder):
            raise CheckpointError(
                f"'{folder}' holds no safetensors weights, so '{INDEX}' is not whole; fetch it again"
            )
