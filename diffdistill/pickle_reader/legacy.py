"""Files of `torch.save` before its zip files, which many published weights still are.

Five pickles (magic number, version, facts of the system, the object, the keys of its storages), then of each storage
its count and its numbers. The object names storages that come after it, so it is read twice: once to learn which there
are, once with their numbers.
"""

from typing import IO, Any

import torch

from diffdistill.errors import CheckpointError
from diffdistill.pickle_reader.machine import PickleReader
from diffdistill.pickle_reader.plain import LEGACY_VERSION, NAMES, Storage, numbers, storage_id

DAMAGED = "the file of torch.save is damaged or cut short; fetch it again"


def read_legacy(stream: IO[bytes], length: int) -> Any:
    """The object of a file of `length` bytes, from behind its magic number, as plain data."""
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
    storages = {key: _storage(stream, *declared[key]) for key in keys}
    stream.seek(start)
    return PickleReader(NAMES, lambda value: storages[storage_id(value)[1]]).read(stream)


def _declared(stream: IO[bytes], length: int) -> dict[str, tuple[torch.dtype, int]]:
    """Type and count of each storage that the object refers to; leaves the stream behind the object."""
    found: dict[str, tuple[torch.dtype, int]] = {}

    def declare(value: Any) -> Storage:
        kind, key, count = storage_id(value)
        if found.setdefault(key, (kind, count)) != (kind, count) or count * kind.itemsize > length:
            raise ValueError
        return Storage(torch.empty(count, dtype=kind, device="meta"))

    PickleReader(NAMES, declare).read(stream)
    return found


def _storage(stream: IO[bytes], kind: torch.dtype, count: int) -> Storage:
    stored, data = int.from_bytes(stream.read(8), "little"), stream.read(count * kind.itemsize)
    if stored != count or len(data) != count * kind.itemsize:
        raise CheckpointError(DAMAGED)
    return Storage(numbers(data, kind))
