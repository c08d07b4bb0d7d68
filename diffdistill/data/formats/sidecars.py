"""Captions in text files beside images, `0001.png` and `0001.txt`, as trainers of text-to-image models read them."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import TypeVar

from diffdistill.data.looking import given, refuse, say, tell_read
from diffdistill.errors import DataError

ENDINGS = (".txt", ".caption")
NUMBERS = re.compile(r"[\d\s.eE+-]*")

P = TypeVar("P", bound=PurePath)


def texts_beside(
    images: Sequence[P], files: Iterable[P], read: Callable[[Sequence[P]], Iterable[str | DataError]], name: str
) -> list[str] | None:
    """The caption of each image, from the file of its name among `files` that ends with .txt or .caption.

    read: the texts of such files, or what is wrong with them. None where no image has one, and where all hold numbers
    alone, as boxes of objects.
    DataError for an image that has none beside others that have one, or that has two.
    """
    beside: dict[P, P] = {}
    captions = [file for file in files if file.suffix.lower() in ENDINGS]
    of_image = {image.with_suffix(""): image for image in images} if captions else {}
    for file in captions:
        if (image := of_image.get(file.with_suffix(""))) is not None:
            if image in beside:
                refuse(
                    f"{name} has the captions {beside[image].name} and {file.name}: leave one of them",
                    f"two captions in {name}",
                )
            beside[image] = file
    if not beside:
        return None
    without = next((image for image in images if image not in beside), None)
    if without is not None:
        refuse(
            f"{name} has captions such as {next(iter(beside.values())).name} for {len(beside)} of {len(images)} "
            f"images and none for {without}: give every image one, or none"
        )
    of_captioned = [image for image in images if image in beside]
    read_of = zip(of_captioned, read([beside[image] for image in of_captioned]), strict=True)
    texts = {image: given(text, "", f"caption of {name}").strip() for image, text in read_of}
    if all(NUMBERS.fullmatch(text) for text in texts.values()):
        say(f"{name} has text files of numbers beside its images, which are not read")
        return None
    tell_read(beside.values())
    return [texts.get(image, "") for image in images]
