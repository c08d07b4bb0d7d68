"""Distilling a teacher of images: its data, its student's levels, its roles, what is looked at."""

from itertools import pairwise

from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.network import clone_network
from diffdistill.pipelines.pixel.schedule import near_levels
from diffdistill.process import Process
from diffdistill.training.batches import training_data
from diffdistill.training.device import Device
from diffdistill.training.kinds.base import (
    Kind,
    Roles,
    check_checkpointing,
    check_noise_alone,
    names_model,
    no_text_start,
)
from diffdistill.training.monitors.images import ImageMonitor
from diffdistill.training.sharded.plan import may_shard


class Images(Kind):
    def data(self, config: Distill, teacher: Denoiser) -> ImageSet:
        return training_data(config, teacher)

    def start(self, config: Distill, teacher: Denoiser) -> Denoiser | None:
        if config.initialize_from is None or not names_model(config.initialize_from):
            return None
        start = Denoiser.from_pretrained(config.initialize_from, next(teacher.parameters()).device)
        if start.draws_texts:
            raise ConfigError(no_text_start(config.initialize_from))
        for what, mine, its in (
            ("image shape", start.image_shape, teacher.image_shape),
            ("number of classes", start.num_classes, teacher.num_classes),
        ):
            if mine != its:
                raise ConfigError(
                    f"initialize_from '{config.initialize_from}' has {what} {mine} and the teacher {its}; give a "
                    f"model of the teacher's kind"
                )
        return start

    def levels(self, config: Distill, teacher: Denoiser, start: Denoiser | None) -> tuple[float, ...]:
        student = config.student
        for name, value in (
            ("student.timesteps", student.timesteps),
            ("student.shift", student.shift),
            ("student.lora", student.lora),
            ("teacher_lora", config.teacher_lora),
            ("critic.lora", config.critic.lora),
        ):
            if value is not None:
                raise ConfigError(
                    f"{name} is for text-to-image teachers, and '{config.teacher}' draws no texts; leave it out"
                )
        first = first_level(config, teacher)
        if config.consistent:
            key = "levels to begin with" if student.levels is not None else "sigma_init to"
            check_noise_alone(first, teacher, f"set student.{key} LEAST or more, at most MOST")
        if first > teacher.sigma_max:
            key = "sigma_init" if student.levels is None else "levels"
            raise ConfigError(
                f"student level {first:g} is above the teacher's highest, {teacher.sigma_max:g}; lower student.{key}"
            )
        return student_levels(config, (start or teacher).process, first)

    def roles(
        self, config: Distill, teacher: Denoiser, about: dict[str, object], device: Device, start: Denoiser | None
    ) -> Roles:
        first, classes = start or teacher, teacher.num_classes
        check_checkpointing(config, teacher.network, first.network)
        lent = may_shard(config, device)
        student = Denoiser(clone_network(first.network, classes, lent), first.process, metadata=about).eval()
        critic = None
        if config.matching is not None:
            critic = Denoiser(clone_network(teacher.network, classes, lent), teacher.process)
        if config.gradient_checkpointing:
            for model in filter(None, (student, critic)):
                model.network.enable_gradient_checkpointing()
        return student, critic

    def monitor(self, config: Distill, data: ImageSet, teacher: Denoiser) -> ImageMonitor:
        return ImageMonitor(config, data, teacher)


def first_level(config: Distill, teacher: Denoiser) -> float:
    """Where the student's first step begins."""
    student = config.student
    return student.levels[0] if student.levels is not None else student.sigma_init or teacher.sigma_max


def student_levels(config: Distill, process: Process, first: float) -> tuple[float, ...]:
    """The student's input levels, on the grid of the stock scheduler that will sample it."""
    student = config.student
    if student.levels is not None and len(student.levels) != student.steps:
        raise ConfigError(
            f"student.steps is {student.steps} and student.levels has {len(student.levels)} values; give one "
            f"level a step"
        )
    if student.levels is not None and any(low >= high for high, low in pairwise(student.levels)):
        raise ConfigError(
            f"student.levels {list(student.levels)} must descend, from the noisiest input to the cleanest"
        )
    return near_levels(process, student.steps, first, student.levels)
