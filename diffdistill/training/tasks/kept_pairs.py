"""What a run has made to train on, kept in its folder: a resumed run reads it, to the last bit, and makes none.

A file a batch, written once, by the leader. Each says what its numbers are and what they were made from; one that is
damaged, or of something else, is made again and written anew.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffdistill import processes
from diffdistill.data.looking import say
from diffdistill.data.stored import digest_of
from diffdistill.files import reason_of, replacing
from diffdistill.training.lock import remove_leftovers

FOLDER = "pairs"


class KeptPairs:
    """Batches of tensors by number, in a folder. what: everything that they depend on, which JSON can hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     kept = KeptPairs(Path(place) / "pairs", {"seed": 0})
    ...     kept.write(3, {"image": torch.ones(2)})
    ...     kept.read(3), kept.read(4), KeptPairs(Path(place) / "pairs", {"seed": 1}).read(3)
    ({'image': tensor([1., 1.])}, None, None)
    """

    def __init__(self, folder: Path, what: Any):
        self.folder, self.what = folder, digest_of(what)
        self._writes, self._cleared = True, False

    def _file(self, k: int) -> Path:
        return self.folder / f"{k:06}.safetensors"

    def read(self, k: int) -> dict[str, Tensor] | None:
        with suppress(OSError, SafetensorError, ValueError, RuntimeError):
            with safe_open(self._file(k), framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                said = opened.metadata() or {}
            if said == self._said(k, tensors):
                return tensors
        return None

    def write(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """The first failure is said, and is the last try: what is not kept is made again."""
        if not (self._writes and processes.leader()):
            return
        on_disk = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._cleared:
                remove_leftovers(self.folder)  # of a process that was killed as it wrote
                self._cleared = True
            with replacing(self._file(k)) as partial:
                save_file(on_disk, partial, self._said(k, on_disk))
        except (OSError, SafetensorError) as error:
            self._writes = False
            say(f"what was made is not kept in '{self.folder}' ({reason_of(error)}): a resumed run makes it again")

    def _said(self, k: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What the file says of itself: safetensors carries no checksum, and a copy may have another's name."""
        numbers = {name: _sha256(value) for name, value in tensors.items()}
        return {"made_from": self.what, "batch": str(k), **numbers}


def read_or_made(kept: KeptPairs | None, k: int, make: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batch k as it is kept, or else made and kept; of several processes all make it, or none."""
    read = None if kept is None else kept.read(k)
    if processes.most(read is None) or read is None:
        read = make(k)
        if kept is not None:
            kept.write(k, read)
    return read


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
