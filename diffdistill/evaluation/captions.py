"""Which text belongs to which image of a set: by the record beside them, by the numbers of their names, in turn.

A score of images for texts that are not theirs is a number like any other, so what is not sure is said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from diffdistill.errors import DataError


@dataclass(frozen=True)
class Captions:
    """A text for each image, and what a reader of the score must know, a sentence each."""

    texts: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def captions_of(
    count: int, recorded: Sequence[str] | None, given: Sequence[str], names: Sequence[str] | None, file: str
) -> Captions:
    """The given texts for `count` images.

    recorded: the texts that the set itself has, one an image. names: of the image files, in their order; None where
    images have a place and no name, as in an array. file: what gave the texts, for messages.

    Image i has text i, or i mod P where there are P < count; where there are more texts than images, an image has the
    text of its number. Raises DataError where there are more texts and no such numbers.

    >>> captions_of(3, None, ["a hat", "a bag", "a boot"], ["0.png", "1.png", "2.png"], "p.txt").warnings
    ()
    >>> captions_of(2, None, ["a hat", "a bag", "a boot"], ["0.png", "2.png"], "p.txt").texts
    ('a hat', 'a boot')
    >>> captions_of(3, None, ["a hat", "a bag"], None, "p.txt").warnings
    ('p.txt has 2 prompts for 3 images: they are taken in turn, image 2 has prompt 0',)
    """
    numbers = None if names is None else numbers_of(names)
    warnings = []
    if len(given) > count:
        texts = _by_number(count, given, names, numbers, file)
        warnings.append(f"{file} has {len(given)} prompts for {count} images: each has that of the number in its name")
    else:
        texts = tuple(given[i % len(given)] for i in range(count))
    agree = recorded is not None and tuple(recorded) == texts
    if recorded is not None and not agree:
        place = next(i for i, pair in enumerate(zip(recorded, texts, strict=True)) if pair[0] != pair[1])
        warnings.append(
            f"{file} gives image {place} the prompt {texts[place]!r:.60}, and the record beside the images says "
            f"{recorded[place]!r:.60}: leave the prompts out to score what is recorded"
        )
    elif not agree and 1 < len(given) < count:
        warnings.append(
            f"{file} has {len(given)} prompts for {count} images: they are taken in turn, image {len(given)} has "
            f"prompt 0"
        )
    elif not agree and len(given) == count > 1 and names is not None:
        warnings += _order(names, numbers, file)
    return Captions(texts, tuple(warnings))


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The numbers in names that differ by one number alone, as `7.png` or `image-007.png`; else None."""
    parts = [re.split(r"([0-9]+)", PurePath(name).stem) for name in names]
    if any(len(part) != len(parts[0]) or PurePath(name).parent != PurePath(names[0]).parent
           for part, name in zip(parts, names, strict=True)):  # fmt: skip
        return None
    differing = [i for i in range(len(parts[0])) if len({part[i] for part in parts}) > 1]
    if len(parts) == 1:
        differing = [len(parts[0]) - 2]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return None
    return [int(part[differing[0]]) for part in parts]


def _by_number(
    count: int, given: Sequence[str], names: Sequence[str] | None, numbers: list[int] | None, file: str
) -> tuple[str, ...]:
    sure = numbers is not None and len(set(numbers)) == count and 0 in numbers and max(numbers) < len(given)
    if numbers is None or not sure:
        where = "images have no names" if names is None else f"names such as {names[0]!r} do not count them from 0"
        raise DataError(
            f"{file} has {len(given)} prompts for {count} images, and {where}: give as many prompts as images, in "
            f"their order"
        )
    return tuple(given[number] for number in numbers)


def _order(names: Sequence[str], numbers: list[int] | None, file: str) -> list[str]:
    """What is not sure where there are as many texts as images."""
    if numbers is None:
        return [
            f"the names of the images are no numbers: the prompts of {file} are matched in the order of the names, "
            f"{PurePath(names[0]).name!r} is the first"
        ]
    if sorted(numbers) != list(range(min(numbers), min(numbers) + len(numbers))):
        return [
            f"the numbers of the images have gaps, {min(numbers)} to {max(numbers)} for {len(names)}: the prompts of "
            f"{file} are matched in the order of the numbers"
        ]
    return []
