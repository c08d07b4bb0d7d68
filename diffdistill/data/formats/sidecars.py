"""Captions in text files beside images, `0001.png` and `0001.txt`, as trainers of text-to-image models read them."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import TypeVar

from diffdistill.errors import DataError

ENDINGS = (".txt", ".caption")
NUMBERS = re.compile(r"[\d\s.eE+-]*")

logger = logging.getLogger(__name__)
P = TypeVar("P", bound=PurePath)


def texts_beside(
    images: Sequence[P], files: Iterable[P], read: Callable[[Sequence[P]], Iterable[str]], name: str
) -> list[str] | None:
    """The caption of each image, from the file of its name among `files` that ends with .txt or .caption.

    read: the texts of such files. None where no image has one, and where all hold numbers alone, as boxes of objects.
    DataError for an image that has none beside others that have one, or that has two.
    """
    beside: dict[P, P] = {}
    captions = [file for file in files if file.suffix.lower() in ENDINGS]
    of_image = {image.with_suffix(""): image for image in images} if captions else {}
    for file in captions:
        if (image := of_image.get(file.with_suffix(""))) is not None:
            if image in beside:
                raise DataError(f"{name} has the captions {beside[image].name} and {file.name}: leave one of them")
            beside[image] = file
    if not beside:
        return None
    without = next((image for image in images if image not in beside), None)
    if without is not None:
        raise DataError(
            f"{name} has captions such as {next(iter(beside.values())).name} for {len(beside)} of {len(images)} "
            f"images and none for {without}: give every image one, or none"
        )
    texts = [text.strip() for text in read([beside[image] for image in images])]
    if all(NUMBERS.fullmatch(text) for text in texts):
        logger.warning("warning: %s has text files of numbers beside its images, which are not read", name)
        return None
    return texts
