"""Encoded prompts on disk, for later starts: one file a model, to which every process that encodes appends.

    record: SHA-256 of what was encoded and how (32 bytes), length (8), CRC-32 (4), then safetensors

Records are found by one look at their heads when the file is opened. A record that a killed process left unfinished is
cut off by the next one that writes; one that is damaged is encoded again. Nothing here is needed: what cannot be read
or written is made anew.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffdistill.data.identity import state_of
from diffdistill.data.looking import say
from diffdistill.data.stored import digest_of
from diffdistill.files import cache_dir, discard, reason_of
from diffdistill.locks import taking_turns
from diffdistill.pipelines.folder import locate
from diffdistill.pipelines.text.kept import Condition

HEAD = struct.Struct("<32sQI")
RECORDS = "records"

BETWEEN = "/"  # the names of values within values


class Shelf:
    """The encoded prompts of one model, in a folder, `most` bytes at most; see the module."""

    def __init__(self, folder: Path, most: float):
        self.file, self.most = folder / RECORDS, most
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._end = 0
        self._writes = True
        with suppress(OSError):
            os.utime(self.file)  # when it was last of use
        self._look()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, what: Any) -> Condition | None:
        """The value that was put under this name, which JSON can hold; None where there is none, or a damaged one."""
        key = _key(what)
        if key not in self._places:
            self._look()
        if key not in self._places:
            return None
        place, size, crc = self._places[key]
        with suppress(OSError, SafetensorError), self.file.open("rb") as file:
            file.seek(place)
            data = file.read(size)
            if len(data) == size and zlib.crc32(data) == crc:
                return _nested(load(data))
        return None

    def put(self, what: Any, value: Condition) -> None:
        """Append a value of tensors, if there is room; the first failure is said, and is the last try."""
        flat = dict(_flat(value))
        if not self._writes or not all(isinstance(entry, Tensor) for entry in flat.values()):
            return
        data = save({name: entry.contiguous() for name, entry in flat.items()})
        head = HEAD.pack(_key(what), len(data), zlib.crc32(data))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with taking_turns(self.file.with_suffix(".lock")):
                self._append(head + data)
        except OSError as error:
            self._writes = False
            say(f"encoded prompts are not kept in '{self.file.parent}' ({reason_of(error)}): set DIFFDISTILL_CACHE")

    def _append(self, record: bytes) -> None:
        self._look()
        with self.file.open("ab", buffering=0) as file:
            if self._end + len(record) > self.most:
                self._writes = False
                return
            file.truncate(self._end)  # of a record that was begun
            try:
                done = 0
                while done < len(record):
                    done += file.write(record[done:])
            except BaseException:
                file.truncate(self._end)
                raise
        self._look()

    def _look(self) -> None:
        """Go through the heads that have come since the last look, up to the first that is not whole."""
        with suppress(OSError), self.file.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._end:  # it was removed, and begun anew
                self._places.clear()
                self._end = 0
            while self._end + HEAD.size <= size:
                file.seek(self._end)
                key, length, crc = HEAD.unpack(file.read(HEAD.size))
                end = self._end + HEAD.size + length
                if end > size:
                    return
                self._places[key] = self._end + HEAD.size, length, crc
                self._end = end


def shelf_of(model: str, gigabytes: float) -> Shelf | None:
    """Where the prompts of a model folder are kept, under a name for its files and for what encodes them.

    gigabytes: what the prompts of all models may take; 0: none are kept. Those of models that were longest not used
    leave, until the others have half.
    """
    if gigabytes == 0:
        return None
    import diffusers
    import transformers

    files = sorted(file for file in locate(model).rglob("*") if file.is_file())
    versions = [torch.__version__, diffusers.__version__, transformers.__version__]
    place = cache_dir() / "prompts"
    own = place / digest_of([state_of(files), versions])
    with suppress(OSError):
        others = [folder for folder in place.iterdir() if folder != own and (folder / RECORDS).is_file()]
        sizes = {folder: (folder / RECORDS).stat().st_size for folder in others}
        for folder in sorted(others, key=lambda one: (one / RECORDS).stat().st_mtime):
            if sum(sizes.values()) <= gigabytes * 1e9 / 2:
                break
            discard(folder)
            del sizes[folder]
        return Shelf(own, gigabytes * 1e9 - sum(sizes.values()))
    return Shelf(own, gigabytes * 1e9)


def _key(what: Any) -> bytes:
    return hashlib.sha256(json.dumps(what).encode()).digest()


def _flat(value: Condition, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in value.items():
        if isinstance(entry, dict):
            yield from _flat(entry, f"{above}{name}{BETWEEN}")
        else:
            yield f"{above}{name}", entry


def _nested(flat: dict[str, Tensor]) -> Condition:
    value: Condition = {}
    for path, entry in flat.items():
        *above, name = path.split(BETWEEN)
        inner = value
        for step in above:
            inner = inner.setdefault(step, {})
        inner[name] = entry
    return value
