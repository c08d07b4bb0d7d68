"""Files of foreign weights as plain data: pickles, safetensors, `torch.save` of any age; nothing in them runs."""

import mmap
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffdistill.errors import CheckpointError
from diffdistill.files import BROKEN_ZIP, reason_of
from diffdistill.pickle_reader.machine import PickleReader, Refused, shown
from diffdistill.pickle_reader.plain import LEGACY_MAGIC, LEGACY_VERSION, NAMES, Array, Storage, numbers, storage_id

ZIP = b"PK\x03\x04"
DAMAGED = "the file of torch.save is damaged or cut short; fetch it again"


def read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{file}' is no readable safetensors file ({reason_of(error)}); fetch it again"
        ) from error


def read_pickle(file: Path) -> Any:
    """The content of a pickle, or of a file of `torch.save`, zip or older, as plain data."""
    try:
        with file.open("rb") as stream:
            if stream.read(4) == ZIP:
                return _read_torch_zip(file)
            if file.stat().st_size == 0:
                raise CheckpointError("the file is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                value = PickleReader(NAMES).read(content)  # type: ignore[arg-type]  # it reads as a file does
                if isinstance(value, int) and value == LEGACY_MAGIC:
                    return _read_legacy(content, len(content))  # type: ignore[arg-type]
                return value
    except CheckpointError as error:
        raise CheckpointError(f"'{file}': {error}") from None
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read ({error.strerror or error}); give another file") from error


def _read_torch_zip(file: Path) -> Any:
    """`torch.save`'s zip: `NAME/data.pkl`, and the numbers of each storage in `NAME/data/KEY`, stored as they are."""
    storages: dict[str, Storage] = {}

    def storage(value: Any) -> Storage:
        kind, key, count = storage_id(value)
        if key not in storages:
            data = content(f"{root}/data/{key}")
            if len(data) != count * kind.itemsize:
                raise ValueError
            storages[key] = Storage(numbers(data, kind))
        return storages[key]

    def content(name: str) -> bytes:
        entry = archive.getinfo(name)
        # A compressed entry may unpack to any size, and torch.save compresses none.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise Refused("the zip file is compressed, which torch.save does not do")
        return archive.read(entry)

    try:
        with zipfile.ZipFile(file) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise Refused("the zip file is not of torch.save")
            root = roots[0]
            with archive.open(archive.getinfo(f"{root}/data.pkl")) as stream:
                return PickleReader(NAMES, storage).read(stream)
    except Refused as error:
        raise CheckpointError(f"{error}; give another file") from None
    except (KeyError, *BROKEN_ZIP) as error:
        raise CheckpointError(f"the zip file is damaged ({reason_of(error)}); fetch it again") from error


def _read_legacy(stream: IO[bytes], length: int) -> Any:
    """The object of a file of torch.save from before its zip files, `length` bytes, from behind its magic number.

    Five pickles (magic number, version, facts of the system, the object, the keys of its storages), then of each
    storage its count and its numbers. The object names storages that come after it, so it is read twice: once to learn
    which there are, once with their numbers.
    """
    if PickleReader({}).read(stream) != LEGACY_VERSION:
        raise CheckpointError("the file is of torch.save in an unknown format; save it again with a newer torch")
    system = PickleReader({}).read(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("the file holds numbers that are not little-endian; save it again on another machine")
    start = stream.tell()
    declared = _declared(stream, length)
    keys = PickleReader({}).read(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(declared):
        raise CheckpointError(DAMAGED)
    storages = {key: _legacy_storage(stream, *declared[key]) for key in keys}
    stream.seek(start)
    return PickleReader(NAMES, lambda value: storages[storage_id(value)[1]]).read(stream)


def _declared(stream: IO[bytes], length: int) -> dict[str, tuple[torch.dtype, int]]:
    """Type and count of each storage that the object refers to; leaves the stream behind the object."""
    declared: dict[str, tuple[torch.dtype, int]] = {}

    def declare(value: Any) -> Storage:
        kind, key, count = storage_id(value)
        if declared.setdefault(key, (kind, count)) != (kind, count) or count * kind.itemsize > length:
            raise ValueError
        return Storage(torch.empty(count, dtype=kind, device="meta"))

    PickleReader(NAMES, declare).read(stream)
    return declared


def _legacy_storage(stream: IO[bytes], kind: torch.dtype, count: int) -> Storage:
    stored, data = int.from_bytes(stream.read(8), "little"), stream.read(count * kind.itemsize)
    if stored != count or len(data) != count * kind.itemsize:
        raise CheckpointError(DAMAGED)
    return Storage(numbers(data, kind))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors by name of a file of `torch.save` that holds nothing else (a `state_dict`)."""
    content = read_pickle(file)
    tensors = tensors_in(content)
    if not tensors or len(tensors) != len(content):
        raise CheckpointError(
            f"'{file}' holds {shown_content(content)} and not tensors by name; give a file of a state_dict"
        )
    return tensors


def shown_content(content: Any) -> str:
    """What a file holds, for a message."""
    if not isinstance(content, dict):
        return f"one object ({shown(type(content).__name__)})"
    return ", ".join(shown(name) for name in list(content)[:8]) or "nothing"


def tensors_in(values: Any) -> dict[str, Tensor]:
    """Those of a dict that are tensors, or arrays, by name; nothing of anything else."""
    if not isinstance(values, dict):
        return {}
    opened = {str(name): value.tensor if isinstance(value, Array) else value for name, value in values.items()}
    return {name: value for name, value in opened.items() if isinstance(value, Tensor)}
