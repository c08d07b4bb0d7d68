"""The data of a run, checked against its teacher."""

from dataclasses import replace

from diffdistill.config.align import Align
from diffdistill.config.schema import Run
from diffdistill.data import ImageSet, load_images
from diffdistill.data.pairs import PairSet, digest_of, load_pairs, split_by_caption
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError


def training_data(config: Run, teacher: Denoiser | None = None) -> ImageSet:
    """The images of the run, checked against the teacher: channels, size, labels."""
    channels = None if teacher is None else teacher.image_shape[0]
    settings = config.data
    data = load_images(
        settings.path, split=settings.split, image_size=settings.image_size, limit=settings.limit, channels=channels
    )
    if teacher is None:
        return data
    if tuple(data.images.shape[1:]) != teacher.image_shape:
        have, want = "x".join(map(str, data.images.shape[1:])), "x".join(map(str, teacher.image_shape))
        raise ConfigError(
            f"images are {have} and the teacher makes {want}; set data.image_size={teacher.image_shape[1]}"
        )
    if teacher.num_classes is None and data.labels is not None:
        print(f"the teacher has no classes: the labels of '{settings.path}' are left aside")
        return replace(data, labels=None, class_names=None)
    if teacher.num_classes is not None:
        if data.labels is None:
            raise ConfigError(
                f"the teacher has {teacher.num_classes} classes and '{config.data.path}' has no labels; give "
                f"labelled data"
            )
        if int(data.labels.max()) >= teacher.num_classes:
            raise ConfigError(
                f"'{config.data.path}' has label {int(data.labels.max())} and the teacher knows 0 to "
                f"{teacher.num_classes - 1}; use its classes"
            )
    return data


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
