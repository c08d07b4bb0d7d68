"""Checkpoints of sharded networks: each process writes its part, in safetensors, by torch.distributed.checkpoint.

All of a run's tensors are one state dict, `PART.NAME`; process r writes `shard-R-model-00001-of-00001.safetensors`,
whose header says where each piece lies in its tensor. What all processes hold is written once. So what is read needs
not be cut as it was written: by more processes or fewer, or by one that holds everything.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.files import sha256
from diffdistill.sharding import is_sharded, local, part_of
from diffdistill.training.flat import Part, Parts, restore, tensors_of

SHARDS = "shard-*.safetensors"
NUMBER = "()"  # ends the name of what is a number, and is stored as a vector of one, which can be cut
PIECE = "shard-{:05d}-*.safetensors"


def holds_shards(parts: Parts) -> bool:
    """Whether any tensor of these parts is sharded, now."""
    return any(is_sharded(value) for part in parts.values() for value in _members(part))


def is_cut(folder: Path) -> bool:
    """Whether a checkpoint was written in pieces."""
    return any(folder.glob(SHARDS))


def _members(part: Part) -> Iterator[Tensor]:
    if isinstance(part, nn.Module):
        yield from part.parameters()
    else:
        yield from (weight for group in part.param_groups for weight in group["params"])


def state_of(parts: Parts) -> dict[str, Tensor]:
    """Every tensor by `PART.NAME`."""
    return {key: value for name, part in parts.items() for key, value in _named(name, tensors_of(part)).items()}


def _named(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{part}.{key}" + (NUMBER if value.ndim == 0 else ""): value.view(1) if value.ndim == 0 else value
        for key, value in tensors.items()
    }


def looked_at(parts: Parts) -> dict[str, Any]:
    """`bytes` that all processes would write, and the first part that is not `finite`; None: all are."""
    mine: dict[str, Any] = {"bytes": 0, "broken": None}
    for name, part in parts.items():
        held = [local(value) for value in tensors_of(part).values()]
        mine["bytes"] += sum(value.nbytes for value in held)
        if mine["broken"] is None and not all(bool(v.isfinite().all()) for v in held if v.is_floating_point()):
            mine["broken"] = name
    everyone = _of_all(mine)
    broken = [one["broken"] for one in everyone if one["broken"] is not None]
    return {"bytes": sum(one["bytes"] for one in everyone), "broken": broken[0] if broken else None}


def write(folder: str, parts: Parts) -> dict[str, Any]:
    """Write the tensors into a folder that is there; `files` by name with their size and SHA-256, or what `failed`.

    The same on all.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    place = Path(folder)
    failed: str | None = None
    try:
        save(state_of(parts), storage_writer=HuggingFaceStorageWriter(folder, save_distributed=True))
    except CheckpointException as error:  # on all, with what failed on each
        first = next(iter(error.failures.values()))[0]
        failed = getattr(first, "strerror", None) or str(first) or type(first).__name__
    mine: dict[str, Any] = {"failed": failed, "files": {}}
    try:
        for file in () if failed else place.glob(PIECE.format(processes.rank() + 1)):
            mine["files"][file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    except OSError as error:
        mine["failed"] = error.strerror
    everyone = _of_all(mine)
    return {
        "failed": next((one["failed"] for one in everyone if one["failed"]), None),
        "files": {name: entry for one in everyone for name, entry in one["files"].items()},
    }


def _of_all(value: Any) -> list[Any]:
    """What each process gives, which JSON can hold, on all."""
    return [processes.share(value, source) for source in range(processes.size())]


def read(folder: Path, name: str, part: Part) -> None:
    """Fill a part, sharded or not, from a checkpoint that is cut; each process reads what it holds, without a word.

    KeyError, ValueError or RuntimeError where it holds other tensors.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    reader = HuggingFaceStorageReader(str(folder))
    prefix = f"{name}."
    stored = {
        key.removeprefix(prefix): about
        for key, about in reader.read_metadata().state_dict_metadata.items()
        if key.startswith(prefix)
    }
    targets = _targets(part, stored)
    wanted = _named(name, targets)
    if odd := wanted.keys() ^ {prefix + key for key in stored}:
        raise KeyError(f"it has other tensors, {min(odd)} among them")
    with warnings.catch_warnings():
        # Each process reads what it needs by itself, and torch says twice, in other words, that it does.
        warnings.filterwarnings("ignore", "torch.distributed is disabled|.*assuming the intent is to load in a single")
        load(wanted, storage_reader=reader, no_dist=True)
    restore(part, targets)


def _targets(part: Part, stored: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors to read into: a module's own, new ones for an optimiser, which may have none yet."""
    if isinstance(part, nn.Module):
        return tensors_of(part)
    weights = list(_members(part))
    targets = {}
    for name, about in stored.items():
        index, _, key = name.partition(".")
        weight = weights[int(index)]
        dtype = about.properties.dtype
        if key.endswith(NUMBER):
            targets[name.removesuffix(NUMBER)] = torch.zeros((), dtype=dtype)
        elif about.size == weight.shape:
            targets[name] = torch.zeros_like(weight, dtype=dtype).detach()
        else:
            targets[name] = torch.zeros(about.size, dtype=dtype, device=weight.device)
    return targets


def read_whole(file: Path, part: Part) -> None:
    """Fill a part, some tensors of which are sharded, from the file of a checkpoint that is not cut."""
    own = tensors_of(part) if isinstance(part, nn.Module) else {}
    weights = list(_members(part))
    tensors = {}
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118  # no mapping
            value = stored.get_tensor(name)
            like = own[name] if isinstance(part, nn.Module) else weights[int(name.partition(".")[0])]
            tensors[name] = part_of(value, like) if value.shape == like.shape else value
    restore(part, tensors)
