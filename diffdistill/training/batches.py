"""The data of a run, checked against its teacher, and the batch of each step."""

from dataclasses import replace

import torch
from torch import Tensor

from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Run
from diffdistill.data import ImageSet, batch_indices, load_images, to_model_range
from diffdistill.data.pairs import PairSet, digest_of, load_pairs, split_by_caption
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.pipelines.text.data import TextSet, text_data
from diffdistill.pipelines.text.denoiser import TextDenoiser


def distillation_data(config: Distill, teacher: Denoiser) -> ImageSet | TextSet:
    """Images of the teacher's kind, or what a text-to-image teacher is asked to draw."""
    return text_data(config, teacher) if isinstance(teacher, TextDenoiser) else training_data(config, teacher)


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


def draw_batch(
    data: ImageSet | TextSet, size: int, seed: int, step: int, flip: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The images (in [-1, 1]) or latents, and the labels or prompts, of one step; half mirrored if `flip`."""
    if isinstance(data, TextSet):
        return data.draw(size, seed, step)
    chosen = batch_indices(len(data.images), size, seed, step)
    x0 = to_model_range(data.images[chosen])
    if flip:
        x0 = torch.where(torch.rand(size, 1, 1, 1) < 0.5, x0.flip(-1), x0)
    return x0, None if data.labels is None else data.labels[chosen]
