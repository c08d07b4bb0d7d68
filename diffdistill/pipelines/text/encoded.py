"""The latents of a set of images: made by a model's VAE once, and kept on disk for the next start."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill import processes
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet, to_model_range
from diffdistill.data.cached import KINDS, no_room, not_writable
from diffdistill.data.identity import state_of
from diffdistill.data.looking import say
from diffdistill.data.rows import Images
from diffdistill.data.stored import (
    Stored,
    digest_of,
    make_room,
    open_stored,
    store,
    write_folder,
    write_rows,
    written_to,
)
from diffdistill.errors import DiskError
from diffdistill.files import cache_dir
from diffdistill.machine import neighbours, total_memory
from diffdistill.pipelines.folder import locate
from diffdistill.pipelines.text.denoiser import TextDenoiser

AT_ONCE = 16  # images that a process reads and encodes


def latents_of(config: Distill, model: TextDenoiser, data: ImageSet) -> Images:
    """The mean latents of all images, float32 `(N, C, h, w)`: of the cache, or encoded, by all processes in turn.

    `data.keep=memory` keeps none on disk; `auto` neither, where there is no room and they fit the memory. Raises
    DiskError where there is no room otherwise.
    """
    settings, folder = config.data, cache_folder(config, model, data)
    if settings.keep == "memory":
        return torch.cat(list(_encoded(model, data)))
    found = open_stored(folder)
    if not processes.most(found is None) and found is not None:
        return found
    reason = processes.lead(lambda: _no_room(folder, model, data, settings.disk_cache_gb))
    if reason is None:
        return _stored(folder, model, data)
    if settings.keep == "auto" and _size(model, data) < total_memory() // (2 * neighbours()):
        say(f"the latents of {data.name} are encoded at every start, for {reason}")
        return torch.cat(list(_encoded(model, data)))
    raise DiskError(f"the latents of {data.name} are not kept on disk: {reason}")


def cache_folder(config: Distill, model: TextDenoiser, data: ImageSet) -> Path:
    """Where the latents are kept: under a name for the model's files, the pixels, and what rounds otherwise."""
    files = sorted(file for file in locate(config.teacher).rglob("*") if file.is_file())
    versions = [torch.__version__, diffusers.__version__]
    key = [state_of(files), data.fingerprint, list(data.images.shape), model.adapter.device.type, versions]
    return cache_dir() / "latents" / digest_of(key)


def _size(model: TextDenoiser, data: ImageSet) -> int:
    return len(data) * 4 * int(np.prod(model.image_shape))


def _no_room(folder: Path, model: TextDenoiser, data: ImageSet, disk_gb: float) -> str | None:
    """Why the cache cannot be made, once older ones have made room."""
    make_room([cache_dir() / kind for kind in KINDS], _size(model, data), disk_gb * 1e9)
    return not_writable(folder.parent) or no_room(folder.parent, _size(model, data), disk_gb)


def _encoded(model: TextDenoiser, data: ImageSet) -> Iterator[Tensor]:
    """The latents of some images after the other, on all processes."""
    parts = (slice(start, start + AT_ONCE) for start in range(0, len(data), AT_ONCE))
    made = processes.in_turn(lambda part: {"latents": model.encode(to_model_range(data.images[part])).cpu()}, parts)
    with tqdm(total=len(data), desc="encoding", unit="image", leave=False, delay=1) as bar:
        for part in made:
            yield part["latents"]
            bar.update(len(part["latents"]))


def _stored(folder: Path, model: TextDenoiser, data: ImageSet) -> Stored:
    """Encode, write and open: of several processes one on each machine writes, and all encode."""

    def make(staged: Path) -> dict[str, object]:
        rows = (row for part in _encoded(model, data) for row in part.numpy())
        return {**write_rows(staged, rows), "data": data.name, "fingerprint": data.fingerprint}

    what = f"the latents of {data.name}"
    if processes.size() == 1:
        return store(folder, make, what)
    if processes.speaks():  # without a lock, which another run may hold while the others of this one work
        with written_to(folder, what):
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(folder, make)
    else:
        deque(_encoded(model, data), maxlen=0)
    processes.most(0)  # all have come so far
    found = open_stored(folder)
    if found is None:
        raise DiskError(f"{what} were written to '{folder}' and are not there; look at that disk")
    return found
