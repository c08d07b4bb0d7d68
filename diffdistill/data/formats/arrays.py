"""Numpy files: `.npz` with `images` and `labels`, `.npy` with images; object arrays are pickles, and refused."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING

from diffdistill.data.bounds import check_pixels, check_range, check_size
from diffdistill.data.formats import Format
from diffdistill.data.looking import refuse, say, tell_splits
from diffdistill.data.source import SPLITS, Source, as_labels, canonical_split, only_split
from diffdistill.data.values import as_bytes
from diffdistill.errors import DataError
from diffdistill.files import BROKEN_ZIP

if TYPE_CHECKING:
    import numpy as np

LABEL_KEYS = ("labels", "label", "y", "targets", "target", "arr_1")
KEYS = {"images": "labels", "x": "y", "arr_0": "arr_1"}  # arr_0, arr_1: what np.savez calls unnamed arrays


def read_npz(name: str, path: Path, split: str) -> Source:
    """Images under `images`, `x` or `arr_0`, labels under `labels`, `y` or `arr_1`.

    With splits, the keys of Keras (`x_train`, `y_train`) or MedMNIST (`train_images`, `train_labels`).
    """
    arrays = Npz(path, name)
    of_split = {
        image.format(spelling): label.format(spelling)
        for spelling in SPLITS.get(canonical_split(split), (split,))
        for image, label in (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
    }
    tell_splits(*_splits_of(arrays, split))
    there = [key for key in of_split if key in arrays]
    if len(there) > 1:
        refuse(f"{name} has the arrays {' and '.join(there)}, of one split: leave the one that counts")
    images_key = next((key for key in (*there, *KEYS) if key in arrays), None)
    if images_key is None:
        raise DataError(
            f"{name} has the arrays {', '.join(arrays) or '(none)'}, but no 'images': rename the one with the images"
        )
    if images_key in KEYS:
        only_split(split, name)
    array = arrays[images_key]
    images = _as_images(array, f"{images_key} in {name}")
    usual, beside = (of_split | KEYS)[images_key], () if images_key in KEYS else tuple(of_split.values())
    labels_key = _labels_key(usual, beside, _only_of_its_split(arrays, images_key), arrays)
    if labels_key is None:
        _check_several(array.shape, f"{images_key} in {name}")
        return Source(len(images), images)
    labels = arrays[labels_key]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),):
        refuse(f"{name} has {len(images)} images, but {labels_key} of shape {labels.shape}: one label an image")
        return Source(len(images), images)
    values, class_names = as_labels(labels, name)
    return Source(len(images), images, values, class_names=class_names)


def _splits_of(arrays: "Npz", split: str) -> tuple[list[str], str | None]:
    """The splits that keys name, and which of them is asked for."""
    there = [
        known
        for known, spellings in SPLITS.items()
        if any(key in arrays for spelling in spellings for key in (f"x_{spelling}", f"{spelling}_images"))
    ]
    asked = canonical_split(split)
    return there, asked if asked in there else None


def _images_keys() -> list[str]:
    spellings = [one for own in SPLITS.values() for one in own]
    return [*KEYS, *(key for one in spellings for key in (f"x_{one}", f"{one}_images"))]


def _only_of_its_split(arrays: "Npz", images_key: str) -> bool:
    """Whether labels that name no split can only be those of these images."""
    return not any(key in arrays for key in _images_keys() if key != images_key)


def _labels_key(usual: str, beside: tuple[str, ...], whole: bool, arrays: "Npz") -> str | None:
    """The array of labels: the usual one beside those images, or the only one called as labels are.

    beside: what labels of that split are called in other spellings. whole: whether labels without a split are theirs.
    DataError for several; a warning where other arrays are there and none is of labels.
    """
    there = [key for key in dict.fromkeys((usual, *beside, *(LABEL_KEYS if whole else ()))) if key in arrays]
    if usual in there:
        return usual
    if len(there) > 1:
        refuse(f"{arrays.name} has the arrays {' and '.join(there)}: call the one with the labels {usual!r}")
        return None
    if not there and not set(arrays) <= set(_images_keys()):
        say(f"{arrays.name} has {', '.join(arrays)}, read without labels, which are called {usual!r}")
    return there[0] if there else None


def read_npy(name: str, path: Path, split: str) -> Source:
    """Images of an `.npy`, without labels."""
    only_split(split, name)
    size = path.stat().st_size
    with open(path, "rb") as file:
        array = _load(file, name, size, size)
    images = _as_images(array, name)
    _check_several(array.shape, name)
    return Source(len(images), images)


class Npz(Mapping[str, "np.ndarray"]):
    """The arrays of an `.npz`, each read when it is asked for; DataError for one that is damaged or a pickle."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        with self._opened() as archive:
            members = archive.infolist()
        if foreign := [member.filename for member in members if not member.filename.endswith(".npy")]:
            raise DataError(f"{name} holds {foreign[0]!r:.80}, which is no array: it is damaged, make it again")
        names = [member.filename for member in members]
        if twice := [one for one in names if names.count(one) > 1]:
            raise DataError(f"{name} holds {twice[0]!r:.80} twice: which counts? leave one in it")
        self.members = {member.filename.removesuffix(".npy"): member for member in members}

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: str) -> "np.ndarray":
        member = self.members[key]
        with self._opened() as archive, archive.open(member) as file:
            return _load(file, f"{member.filename} in {self.name}", member.file_size, member.compress_size)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except BROKEN_ZIP as error:
            raise DataError(f"{self.name} is damaged or not an npz file ({error}): make it again") from error


def _as_images(array: "np.ndarray", name: str) -> "np.ndarray":
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, H, W, C), where C is 1 or 3; DataError for other arrays."""
    if array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.shape[1] > 4:
        raise DataError(f"{name} has the shape {array.shape}, which is that of one picture: give (N, H, W, C)")
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] in (1, 3):
        raise DataError(
            f"{name} has the shape {array.shape}, which may be (N, H, W, C) or (N, C, H, W): give pictures of more "
            "than 3 pixels a side"
        )
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    elif array.ndim == 3:
        array = array[..., None]
    elif array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{name} has the shape {array.shape}: images are (N, H, W), (N, H, W, 3) or (N, 3, H, W)")
    check_pixels(array.shape[1], array.shape[2], name)
    array = as_bytes(array, name)
    check_range(array, name)
    return array


def _check_several(shape: tuple[int, ...], name: str) -> None:
    """DataError for an array (3, H, W) without labels: three gray images, or one picture in colour."""
    if len(shape) == 3 and shape[0] == 3:
        _, height, width = shape
        refuse(
            f"{name} has the shape (3, {height}, {width}), which may be one picture in colour: give three gray ones "
            f"as (3, {height}, {width}, 1), and one as (1, 3, {height}, {width})"
        )


def _load(file: IO[bytes], name: str, size: int, packed: int) -> "np.ndarray":
    """The array of a file of `size` bytes, of which `packed` are stored; its header is believed when it fits them."""
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, and opening those can run code: save plain numbers")
        announced = math.prod(shape) * dtype.itemsize
        check_size(announced, packed, name)
        if announced > size or min(shape, default=0) < 0:
            raise DataError(f"{name} is damaged: its header announces {announced} bytes of {size}; make it again")
        file.seek(0)
        return npy.read_array(file, allow_pickle=False)
    except (ValueError, TypeError, OverflowError, MemoryError, SyntaxError, TokenError, RecursionError) as error:
        raise DataError(f"{name} is damaged or not a numpy file: make it again") from error


FORMAT = (
    Format("npz", 51, "an npz", lambda _, path: path.is_file() and path.suffix.lower() == ".npz", read_npz),
    Format("npy", 52, "an npy", lambda _, path: path.is_file() and path.suffix.lower() == ".npy", read_npy),
)
