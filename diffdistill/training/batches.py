"""The data of a run, checked against its teacher."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from diffdistill.config.align import Align
from diffdistill.config.schema import Run
from diffdistill.data import ImageSet, load_images
from diffdistill.data.layout import HIGHEST
from diffdistill.data.pairs import PairSet, digest_of, load_pairs, split_by_caption
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.pipelines.classes import class_names


def training_data(config: Run, teacher: Denoiser | None = None, whose: str = "teacher") -> ImageSet:
    """The images of the run, checked against the teacher, which sentences call `whose`: channels, size, labels."""
    channels = None if teacher is None else teacher.image_shape[0]
    settings = config.data
    data = load_images(
        settings.path, split=settings.split, image_size=settings.image_size, limit=settings.limit, channels=channels,
        keep=settings.keep, workers=settings.workers, disk_gb=settings.disk_cache_gb,
    )  # fmt: skip
    if teacher is None:
        check_counted(data)
        say_classes(data, data.num_classes)
        return data
    if tuple(data.images.shape[1:]) != teacher.image_shape:
        have, want = "x".join(map(str, data.images.shape[1:])), "x".join(map(str, teacher.image_shape))
        raise ConfigError(
            f"the images of '{settings.path}' are {have} and the {whose} makes {want}; set "
            f"data.image_size={teacher.image_shape[1]}"
        )
    if teacher.num_classes is None and data.labels is not None:
        print(f"the {whose} has no classes: the labels of '{settings.path}' are left aside")
        return replace(data, labels=None, class_names=None)
    if teacher.num_classes is not None:
        if data.labels is None:
            raise ConfigError(
                f"the {whose} has {teacher.num_classes} classes and '{config.data.path}' has no labels; give "
                f"labelled data"
            )
        if int(data.labels.max()) >= teacher.num_classes:
            raise ConfigError(
                f"'{config.data.path}' has label {int(data.labels.max())} and the {whose} knows 0 to "
                f"{teacher.num_classes - 1}; use its classes"
            )
        data = by_name(data, class_names(teacher.metadata), teacher.num_classes, whose)
    say_classes(data, teacher.num_classes)
    return data


def by_name(
    data: ImageSet, names: Sequence[str] | None, classes: int | None = None, whose: str = "teacher"
) -> ImageSet:
    """The same images with the names of the teacher's classes, and the labels that those of their names have, where
    both have names; where only the images have, that is said.

    ConfigError for a class that the teacher does not know, and for names of fewer or more classes than a teacher
    without names has: their places in the alphabet are not its labels.
    """
    if data.labels is None or (names is not None and tuple(names) == data.class_names):
        return data
    if names is None and data.class_names is not None:
        if classes is not None and len(data.class_names) != classes:
            raise ConfigError(
                f"'{data.name}' names {len(data.class_names)} classes and the {whose} has {classes} without names, so "
                f"which is which is unknown; call the folders by the numbers of its classes"
            )
        print(
            f"warning: the {whose}'s classes have no names: those of '{data.name}' are matched by number, "
            f"{data.class_names[0]!r:.60} is class 0",
            file=sys.stderr,
        )
    if names is None:
        return data
    if data.class_names is None:
        return replace(data, class_names=tuple(names))
    place = {name: label for label, name in enumerate(names)}
    unknown = [name for name in data.class_names if name not in place]
    if unknown:
        raise ConfigError(
            f"'{data.name}' has the class {unknown[0]!r} and the {whose} knows {', '.join(names):.200}; call the "
            f"classes as it does"
        )
    print(f"labels of '{data.name}' are those that the {whose}'s classes of these names have")
    labels = torch.tensor([place[name] for name in data.class_names])[data.labels]
    return replace(data, labels=labels, class_names=tuple(names))


def names_of_classes(data: Any, teacher: Denoiser) -> Sequence[str] | None:
    """The names of a student's classes: its teacher's, or those of data that name every class of the teacher."""
    names = class_names(teacher.metadata)
    own = getattr(data, "class_names", None)
    return own if names is None and own is not None and len(own) == teacher.num_classes else names


def check_counted(data: ImageSet) -> None:
    """DataError for labels so high that they cannot count classes, as numbers of objects or dates; each takes memory.

    Of a teacher that is there, its classes are the bound.
    """
    top = -1 if data.labels is None else int(data.labels.max())
    if data.labels is not None and data.class_names is None and top >= HIGHEST:
        seen = len(data.labels.unique())
        if top >= 10 * seen:
            raise DataError(
                f"'{data.name}' has {seen} different labels up to {top}: labels count classes from 0 up, number them "
                f"anew or give names"
            )


def say_classes(data: ImageSet, classes: int | None) -> None:
    """What each label means, once; and a warning for those without an image."""
    described = described_classes(data)
    if described is not None:
        print(f"classes of '{data.name}': {described}", file=sys.stderr)
    say_unseen(data, classes)


def described_classes(data: ImageSet, most: int = 20) -> str | None:
    """The labels, their names and how many images have them, as `0 cat (5), 1 dog (7)`; None without labels."""
    if data.labels is None:
        return None
    counts = torch.bincount(data.labels).tolist()
    names = data.class_names or ("",) * len(counts)
    words = [f"{label} {names[label]}".rstrip() + f" ({count})" for label, count in enumerate(counts) if count]
    text = ", ".join(words[:most]) + (f", ... ({len(words)} classes)" if len(words) > most else "")
    return text.encode("utf-8", "backslashreplace").decode()  # names of folders may be no UTF-8


def say_unseen(data: ImageSet, classes: int | None) -> None:
    """Say which classes the training never sees: they are drawn all the same, and nobody taught them."""
    if classes is None or data.labels is None:
        return
    seen = set(data.labels.unique().tolist())
    unseen = [label for label in range(classes) if label not in seen]
    if unseen:
        listed = ", ".join(map(str, unseen[:8])) + (", ..." if len(unseen) > 8 else "")
        print(
            f"warning: '{data.name}' has no image of {len(unseen)} of {classes} classes (class {listed}): they are "
            f"not trained, and sample draws them all the same, unless --class-labels leaves them out",
            file=sys.stderr,
        )


def training_pairs(config: Align) -> tuple[PairSet, PairSet]:
    """`(training, held out)`; ties teach nothing when measured, so the second has none."""
    data = config.data
    pairs = load_pairs(data.path, split=data.split, limit=data.limit, ties=data.ties)
    for reason, count in pairs.counts.items():
        print(f"{data.path}: {count} pairs left out: {reason}")
    if data.held_out_path is not None:
        return pairs, load_pairs(data.held_out_path, split=data.held_out_split)
    training, held_out = split_by_caption(pairs, data.held_out)
    clear = tuple(pair for pair in held_out.pairs if not pair.tie)
    if not clear:
        raise DataError(f"all held-out pairs of {data.path} are ties; raise data.held_out or give data.held_out_path")
    return training, PairSet(clear, held_out.name, held_out.counts, digest_of(clear))
