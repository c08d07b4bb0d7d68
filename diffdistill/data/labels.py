"""What a label means: whole numbers count classes from 0; words are names of classes, sorted as numbers are."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from diffdistill.data.looking import refuse, say
from diffdistill.data.text import check_whole

if TYPE_CHECKING:
    import numpy as np

# Labels that are numbers, and no names: `3`; also `-1`, `1.0`, `1,0` and `1e+00`, which are refused, not sorted as
# words.
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")

# What programs write for a number that is not there.
MISSING = {"", "nan", "na", "n/a", "<na>", "none", "null"}

# The label of an image that a reader has refused already for having none: it is looked at as -1.
UNLABELLED: Any = object()

Where = Callable[[int], str]
Names = tuple[str, ...]


def image_at(index: int) -> str:
    """How messages call an image of which nothing but its place is known."""
    return f"image {index}"


def number_key(text: str) -> tuple[object, ...]:
    """Key that sorts `class 2` before `class 10`, as `class 02` is before it by the alphabet.

    >>> sorted(["b", "a10", "a2"], key=number_key)
    ['a2', 'a10', 'b']
    """
    words: list[object] = list(re.split(r"([0-9]+)", text))
    for i in range(1, len(words), 2):
        digits = str(words[i]).lstrip("0")
        words[i] = (len(digits), digits)
    return (tuple(words), text)


def whole_name(name: str) -> str:
    """A name without the white space around it, and with one spelling of its accents, which systems write in two."""
    return unicodedata.normalize("NFC", name.strip())


def classes_of(names: Iterable[str], where: str) -> Names:
    """Names of classes in the order of their labels; a warning for two that differ by the case alone, and for numbers
    among words, which are not their own labels.
    """
    ordered = tuple(sorted(set(names), key=number_key))
    twice = next((key for key, count in Counter(map(str.casefold, ordered)).items() if count > 1), None)
    if twice is not None:
        one, two = [name for name in ordered if name.casefold() == twice][:2]
        say(f"{where} has the classes {one!r} and {two!r}, which differ by the case alone")
    moved = [(label, name) for label, name in enumerate(ordered) if name.isdecimal() and int(name[-18:]) != label]
    if moved:
        label, name = moved[0]
        say(
            f"{where} has classes of numbers and of words: {name!r} is a name, of label {label}; call all classes by "
            "numbers for these to be the labels"
        )
    return ordered


def as_labels(
    values: "Sequence[Any] | np.ndarray", name: str, class_names: Names | None = None, where: Where = image_at
) -> "tuple[np.ndarray, Names | None]":
    """Labels as int64 (N,), and the names of the classes.

    Strings become their place among the sorted names (`classes_of`), unless all of them are numbers. where: what
    messages call the image of a place.
    Raises DataError for a missing label, one that is no whole number, and one outside 0 .. classes - 1; where a set is
    looked at, these are -1.

    >>> labels, names = as_labels(["dog", "cat 10", "cat 2"], "my set")
    >>> labels.tolist(), names
    ([2, 1, 0], ('cat 2', 'cat 10', 'dog'))
    """
    import numpy as np

    labels = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if class_names is not None and len(set(class_names)) < len(class_names):
        twice = next(one for one, count in Counter(class_names).items() if count > 1)
        refuse(f"{name} has two classes called {twice!r}: which label is which? give each its own name")
    there = [i for i, label in enumerate(labels) if label is not None and label is not UNLABELLED]
    if there and all(isinstance(labels[i], str) for i in there):
        words, class_names = _of_words([labels[i] for i in there], name, class_names, lambda i: where(there[i]))
        for i, word in zip(there, words, strict=True):
            labels[i] = word
    for index, label in enumerate(labels):
        if label is None:
            refuse(f"{name} has no label for {where(index)}: give every image one, or none", f"no label in {name}")
            labels[index] = UNLABELLED
    top = f"to {len(class_names) - 1}, one of {len(class_names)} classes" if class_names else "up"
    end = len(class_names) if class_names else 2**31
    for index, label in enumerate(labels):
        if label is UNLABELLED:
            labels[index] = -1
        elif isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < end:
            large = isinstance(label, int) and label >= 2**31
            refuse(
                f"{name} has the label {label!r} for {where(index)}: labels are whole numbers from 0 "
                f"{'to 2147483647' if large and not class_names else top}",
                f"wrong label in {name}",
            )
            labels[index] = -1
    return np.array(labels, dtype=np.int64), class_names


def _of_words(labels: list[str], name: str, class_names: Names | None, where: Where) -> tuple[list[Any], Names | None]:
    """Labels that are strings as numbers, where they are such or are names; what is neither stays, to be refused."""
    check_whole(labels, "label", name, where)
    words = [whole_name(label) for label in labels]
    known = {whole_name(one): label for label, one in enumerate(class_names or ())}
    if not set(words) <= known.keys():
        numbers = [NUMBER.fullmatch(word) is not None for word in words]
        if any(numbers) and all(one or word.lower() in MISSING for one, word in zip(numbers, words, strict=True)):
            _check_spelling(words, name)
            return [_number(word) for word in words], class_names
        if class_names is None:
            class_names = classes_of(filter(None, words), name) or None
            known = {one: label for label, one in enumerate(class_names or ())}
    return [known.get(word, word or None) for word in words], class_names


def _check_spelling(words: list[str], name: str) -> None:
    """DataError for one number that is written in two ways, as folders of classes are refused for."""
    spelling: dict[object, str] = {}
    for word in words:
        number = _number(word)
        if number is not None and spelling.setdefault(number, word) != word:
            refuse(
                f"{name} has the labels {spelling[number]!r} and {word!r}, which are one number: write it in one way",
                f"two spellings in {name}",
            )


def _number(word: str) -> int | str | None:
    if word.lower() in MISSING:
        return None
    return int(word) if word.lstrip("+-").isdecimal() else word
