"""The VAE's moments of the images of pairs, kept on disk: later starts run no VAE, and decode no image."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.config.align import Align
from diffdistill.data.identity import state_of
from diffdistill.data.looking import say
from diffdistill.data.pairs import Pair, PairSet, Picture, picture
from diffdistill.data.stored import Stored
from diffdistill.errors import DiskError
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.encoded import (
    Tensors,
    encoded_in_turn,
    folder_of,
    found_by_all,
    kept_by_all,
    no_room_for,
)

SIZES = "sizes"  # file beside the rows: height and width of each image file, top and left of its square


class Moments:
    """Moments `(2C, h, w)` of both images of all pairs, and mirrored ones where pairs are mirrored.

    Row `(2 pair + side) variants + mirrored`, side 0 being the wanted image.
    """

    def __init__(self, rows: Stored, variants: int, size: int):
        self.rows, self.variants = rows, variants
        told = np.frombuffer((rows.folder / SIZES).read_bytes(), "<i8").reshape(-1, 4)
        self._told: list[list[int]] = told.tolist()
        self._blank = torch.zeros(1, dtype=torch.uint8).expand(3, size, size)

    def of(self, pairs: Sequence[int], flips: Tensor | None) -> tuple[Tensor, list[Picture]]:
        """`(2B, 2C, h, w)` of some pairs, wanted ones first, and the pictures as far as conditions tell of them.

        flips: `(B,)`, which pairs are mirrored.
        """
        mirrored = [0] * len(pairs) if flips is None else [int(flip) for flip in flips.tolist()]
        places = [
            (2 * pair + side) * self.variants + flip
            for side in (0, 1)
            for pair, flip in zip(pairs, mirrored, strict=True)
        ]
        pictures = [
            Picture(self._blank, (height, width), (top, left))
            for height, width, top, left in (self._told[place] for place in places)
        ]
        return self.rows[torch.tensor(places)], pictures


def moments_of(config: Align, model: Adapter, pairs: PairSet, size: int) -> Moments | None:
    """The moments of all pairs: of the cache, or encoded by all processes; None where they are encoded as drawn.

    `data.keep=disk` keeps them, `memory` and `source` do not; `auto` does where the run draws as many as there are,
    and there is room. Raises DiskError where there is none otherwise.
    """
    settings, variants = config.data, 1 + config.data.horizontal_flip
    if settings.keep not in ("auto", "disk"):
        return None
    folder = _folder(config.model, model, pairs, size, variants)
    if (found := found_by_all(folder)) is not None:
        return Moments(found, variants, size)
    count = 2 * variants * len(pairs)
    if settings.keep == "auto" and 2 * config.max_train_steps * config.train_batch_size < count:
        return None
    what = f"the latents of {pairs.name}"
    one = processes.lead(lambda: model.moments([picture(pairs.pairs[0].win, size)]).nbytes)
    reason = no_room_for(folder, count * one, settings.disk_cache_gb)
    if reason is not None and settings.keep == "auto":
        say(f"{what} are encoded as they are drawn, for {reason}")
        return None
    if reason is not None:
        raise DiskError(f"{what} are not kept on disk: {reason}")

    def encode(part: slice) -> Tensors:
        seen = [_picture(pairs.pairs, row, size, variants) for row in range(count)[part]]
        told = torch.tensor([[*one.original, *one.crop] for one in seen], dtype=torch.int64)
        return {"rows": model.moments(seen).cpu(), SIZES: told}

    def parts() -> Iterator[Tensors]:
        return encoded_in_turn(encode, count)

    return Moments(kept_by_all(folder, parts, what, {"fingerprint": pairs.fingerprint}), variants, size)


def _picture(pairs: Sequence[Pair], row: int, size: int, variants: int) -> Picture:
    """The picture of a row."""
    image, mirrored = divmod(row, variants)
    pair = pairs[image // 2]
    found = picture((pair.win, pair.lose)[image % 2], size)
    return found.mirrored() if mirrored else found


def _folder(name: str, model: Adapter, pairs: PairSet, size: int, variants: int) -> Path:
    """Where they are kept: under a name for the model's files, the pairs, and the state of their files."""
    files = [data for pair in pairs.pairs for _, data in (pair.win, pair.lose) if isinstance(data, Path)]
    return folder_of(name, ["moments", pairs.fingerprint, state_of(files), size, variants, model.device.type])
