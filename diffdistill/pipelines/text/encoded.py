"""What a model's VAE makes of a set of images: encoded once, by all processes, and kept on disk for the next start."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill import processes
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet, to_model_range
from diffdistill.data.cached import clear_for, no_room, not_writable
from diffdistill.data.identity import state_of
from diffdistill.data.looking import say
from diffdistill.data.rows import Images
from diffdistill.data.stored import (
    Stored,
    digest_of,
    open_stored,
    store,
    write_folder,
    write_rows,
    written_to,
)
from diffdistill.errors import DiskError
from diffdistill.files import cache_dir, sha256
from diffdistill.machine import neighbours, total_memory
from diffdistill.pipelines.folder import locate
from diffdistill.pipelines.text.denoiser import TextDenoiser

Tensors = dict[str, Tensor]
AT_ONCE = 16  # images that a process reads and encodes


def latents_of(config: Distill, model: TextDenoiser, data: ImageSet) -> Images:
    """The mean latents of all images, float32 `(N, C, h, w)`: of the cache, or encoded, by all processes in turn.

    `data.keep=memory` keeps none on disk; `auto` neither, where there is no room and they fit the memory. Raises
    DiskError where there is no room otherwise.
    """
    settings, folder = config.data, cache_folder(config, model, data)
    if settings.keep == "memory":
        return torch.cat([part["rows"] for part in _encoded(model, data)])
    if (found := found_by_all(folder)) is not None:
        return found
    what, size = f"the latents of {data.name}", len(data) * 4 * int(np.prod(model.image_shape))
    reason = no_room_for(folder, size, settings.disk_cache_gb)
    if reason is None:
        return kept_by_all(folder, lambda: _encoded(model, data), what, {"fingerprint": data.fingerprint})
    if settings.keep == "auto" and size < total_memory() // (2 * neighbours()):
        say(f"{what} are encoded at every start, for {reason}")
        return torch.cat([part["rows"] for part in _encoded(model, data)])
    raise DiskError(f"{what} are not kept on disk: {reason}")


def cache_folder(config: Distill, model: TextDenoiser, data: ImageSet) -> Path:
    """Where the latents are kept: under a name for the model's files, the pixels, and what rounds otherwise."""
    return folder_of(config.teacher, [data.fingerprint, list(data.images.shape), model.adapter.device.type])


def folder_of(model: str, what: list[Any]) -> Path:
    """Where what a model encodes is kept. what: JSON that tells it from others of the same model."""
    files = sorted(file for file in locate(model).rglob("*") if file.is_file())
    versions = [torch.__version__, diffusers.__version__]
    return cache_dir() / "latents" / digest_of([state_of(files), *what, versions])


def found_by_all(folder: Path) -> Stored | None:
    """What is kept in a folder, where every process finds it whole."""
    found = open_stored(folder)
    return None if processes.most(found is None) else found


def no_room_for(folder: Path, size: int, disk_gb: float | None) -> str | None:
    """Why a cache of `size` bytes cannot be made, once older ones have made room; the same on all."""

    def look() -> str | None:
        clear_for(size, disk_gb)
        return not_writable(folder.parent) or no_room(folder.parent, size, disk_gb)

    return processes.lead(look)


def encoded_in_turn(encode: Callable[[slice], Tensors], count: int) -> Iterator[Tensors]:
    """`encode` of some after the other of `count` images, on all processes: `rows`, and what is told of each row."""
    parts = (slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE))
    with tqdm(total=count, desc="encoding", unit="image", leave=False, delay=1) as bar:
        for part in processes.in_turn(encode, parts):
            yield part
            bar.update(len(part["rows"]))


def _encoded(model: TextDenoiser, data: ImageSet) -> Iterator[Tensors]:
    return encoded_in_turn(lambda part: {"rows": model.encode(to_model_range(data.images[part])).cpu()}, len(data))


def kept_by_all(folder: Path, parts: Callable[[], Iterator[Tensors]], what: str, about: dict[str, Any]) -> Stored:
    """Encode, write and open: of several processes one on each machine writes, and all encode.

    parts: `rows`, and int64 tensors that are told of each row, which lie beside them by their names.
    """

    def make(staged: Path) -> dict[str, Any]:
        told: dict[str, list[Tensor]] = {}

        def rows() -> Iterator[np.ndarray]:
            for part in parts():
                for name in part.keys() - {"rows"}:
                    told.setdefault(name, []).append(part[name])
                yield from part["rows"].numpy()

        found = {**about, **write_rows(staged, rows()), "beside": {}}
        for name, values in told.items():
            (staged / name).write_bytes(torch.cat(values).numpy().astype("<i8").tobytes())
            found["beside"][name] = sha256(staged / name)
        return found

    if processes.size() == 1:
        return store(folder, make, what)
    if processes.speaks():  # without a lock, which another run may hold while the others of this one work
        with written_to(folder, what):
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(folder, make)
    else:
        deque(parts(), maxlen=0)
    processes.most(0)  # all have come so far
    found = open_stored(folder)
    if found is None:
        raise DiskError(f"{what} were written to '{folder}' and are not there; look at that disk")
    return found
