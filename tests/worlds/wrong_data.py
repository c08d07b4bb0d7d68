"""What the tests of wrong data share: a pickle that leaves a trace, and two ways to read a sentence."""

from pathlib import Path

import numpy as np
import pytest

from diffdistill.data import load_images
from diffdistill.errors import DataError

PIXELS = np.arange(4 * 5 * 7, dtype=np.uint8).reshape(4, 5, 7)


class Trap:
    """Its pickle leaves a trace when it is opened."""

    def __reduce__(self):
        return (Path.touch, (Path("opened"),))


def says(sentence: str, data: str, **kwargs) -> None:
    """The whole sentence, as the user sees it."""
    with pytest.raises(DataError) as caught:
        load_images(data, **kwargs)
    assert str(caught.value) == sentence
    assert "\n" not in sentence
    assert caught.value.exit_code == 3


def begins(start: str, data: str, **kwargs) -> None:
    with pytest.raises(DataError) as caught:
        load_images(data, **kwargs)
    assert str(caught.value).startswith(start), caught.value
    assert "\n" not in str(caught.value)


ALLOWED = (
    "builtin:NAME, a folder with metadata.jsonl or metadata.csv, a tar file or a folder of them (WebDataset), "
    "a parquet file or folder, a zip, an npz, an npy, "
    "an IDX file, a Hub id OWNER/NAME or a folder of images"
)
