"""Numpy files: `.npz` with `images` and `labels`, `.npy` with images; object arrays are pickles, and refused."""

import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from diffdistill.data.formats import Format
from diffdistill.data.source import SPLITS, Source, as_labels, canonical_split, only_split
from diffdistill.errors import DataError

if TYPE_CHECKING:
    import numpy as np

KEYS = {"images": "labels", "x": "y", "arr_0": "arr_1"}  # arr_0, arr_1: what np.savez calls unnamed arrays


def read_npz(name: str, path: Path, split: str) -> Source:
    """Images under `images`, `x` or `arr_0`, labels under `labels`, `y` or `arr_1`.

    With splits, the keys of Keras (`x_train`, `y_train`) or MedMNIST (`train_images`, `train_labels`).
    """
    arrays = _load_npz(path, name)
    of_split = {
        image.format(spelling): label.format(spelling)
        for spelling in SPLITS.get(canonical_split(split), (split,))
        for image, label in (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
    }
    images_key = next((key for key in (*of_split, *KEYS) if key in arrays), None)
    if images_key is None:
        raise DataError(
            f"{name} has the arrays {', '.join(arrays) or '(none)'}, but no 'images': rename the one with the images"
        )
    if images_key in KEYS:
        only_split(split, name)
    images = _as_images(arrays[images_key], f"{images_key} in {name}")
    labels_key = (of_split | KEYS)[images_key]
    if labels_key not in arrays:
        return Source(len(images), images)
    labels = arrays[labels_key]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),):
        raise DataError(
            f"{name} has {len(images)} images, but {labels_key} of shape {labels.shape}: one label an image"
        )
    values, class_names = as_labels(labels, name)
    return Source(len(images), images, values, class_names=class_names)


def read_npy(name: str, path: Path, split: str) -> Source:
    """Images of an `.npy`, without labels."""
    only_split(split, name)
    with open(path, "rb") as file:
        images = _as_images(_load(file, name), name)
    return Source(len(images), images)


def _load_npz(path: Path, name: str) -> "dict[str, np.ndarray]":
    """All arrays of an `.npz`; DataError if it is damaged or would need a pickle to be opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.removesuffix(".npy"): _load(archive.open(member), f"{member} in {name}")
                for member in archive.namelist()
                if member.endswith(".npy")
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{name} is damaged or not an npz file ({error}): make it again") from error


def _as_images(array: "np.ndarray", name: str) -> "np.ndarray":
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, H, W, C), where C is 1 or 3; DataError for other arrays."""
    if array.dtype != "uint8":
        raise DataError(f"{name} is of type {array.dtype}: images are uint8, 0 to 255")
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array.transpose(0, 2, 3, 1)
    raise DataError(f"{name} has the shape {array.shape}: images are (N, H, W), (N, H, W, 3) or (N, 3, H, W)")


def _load(file: IO[bytes], name: str) -> "np.ndarray":
    from numpy.lib import format as npy

    try:
        return npy.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{name} holds Python objects, and opening those can run code: save plain numbers"
            ) from error
        raise DataError(f"{name} is damaged or not a numpy file: make it again") from error


FORMAT = (
    Format("npz", 51, "an npz", lambda _, path: path.is_file() and path.suffix.lower() == ".npz", read_npz),
    Format("npy", 52, "an npy", lambda _, path: path.is_file() and path.suffix.lower() == ".npy", read_npy),
)
