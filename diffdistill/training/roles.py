"""The networks of a distillation: student and critic, copies of the teacher or adapters on its weights."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser, last_layer
from diffdistill.errors import ConfigError
from diffdistill.pipelines.network import clone_network
from diffdistill.pipelines.pixel.schedule import near_levels
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.lora import SharedWeights
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.process import Process
from diffdistill.training.device import Device

Roles = tuple[Denoiser, Denoiser]


def student_levels(config: Distill, process: Process) -> tuple[float, ...]:
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
    return near_levels(process, student.steps, student.sigma_init, student.levels)


def names_model(path: str) -> bool:
    """Whether `initialize_from` is a model folder, and not the folder of a run."""
    return (Path(path) / "model_index.json").is_file()


def start_model(config: Distill, teacher: Denoiser) -> Denoiser | None:
    """The model that `initialize_from` names, checked against the teacher; None for a run folder, or for nothing.

    A distilled student or a consistency model of others: its network and its process become the student's, the critic
    is the teacher's copy all the same.
    """
    if config.initialize_from is None or not names_model(config.initialize_from):
        return None
    start = Denoiser.from_pretrained(config.initialize_from, next(teacher.parameters()).device)
    if isinstance(start, TextDenoiser) or isinstance(teacher, TextDenoiser):
        raise ConfigError(
            f"initialize_from '{config.initialize_from}' is a model folder, which students of text-to-image teachers "
            f"cannot begin from; give the run folder of a first stage"
        )
    for what, mine, its in (
        ("image shape", start.image_shape, teacher.image_shape),
        ("number of classes", start.num_classes, teacher.num_classes),
    ):
        if mine != its:
            raise ConfigError(
                f"initialize_from '{config.initialize_from}' has {what} {mine} and the teacher {its}; give a model of "
                f"the teacher's kind"
            )
    return start


def levels_of(config: Distill, teacher: Denoiser, start: Denoiser | None = None) -> tuple[float, ...]:
    """The levels of the run's student, which begins as `start`, or as the teacher; checked against both."""
    student = config.student
    if isinstance(teacher, TextDenoiser):
        if student.levels is not None or ("sigma_init" in student.model_fields_set and student.sigma_init != 2.5):
            raise ConfigError(
                "student.levels and student.sigma_init are of networks in EDM's units; a text teacher has times: give "
                "student.timesteps, or leave all out"
            )
        return text_schedule(teacher.adapter, teacher.process, student.steps, student.timesteps).levels
    for name, value in (
        ("student.timesteps", student.timesteps),
        ("student.lora", student.lora),
        ("critic.lora", config.critic.lora),
    ):
        if value is not None:
            raise ConfigError(
                f"{name} is for text-to-image teachers, and '{config.teacher}' draws no texts; leave it out"
            )
    first = student.sigma_init if student.levels is None else student.levels[0]
    if first > teacher.sigma_max:
        raise ConfigError(
            f"student level {first:g} is above the teacher's highest, {teacher.sigma_max:g}; lower student.sigma_init"
        )
    return student_levels(config, (start or teacher).process)


def build_roles(
    config: Distill, teacher: Denoiser, levels: tuple[float, ...], device: Device, start: Denoiser | None = None
) -> Roles:
    """`(student, critic)`, both starting as the teacher (without its null class), all in evaluation mode.

    start: a model that the student begins as in the teacher's place, with its own preconditioning.

    The score gap is a difference of two networks, and a critic that learned with dropout and speaks without it, or a
    student whose images come from another network at each pass, is not what the equations mean.
    """
    for network in (teacher.network, (start or teacher).network):
        if config.gradient_checkpointing and not getattr(network, "_supports_gradient_checkpointing", False):
            raise ConfigError(
                f"gradient_checkpointing is on, and {type(network).__name__} cannot compute its activations anew; "
                f"set it to false"
            )
    about: dict[str, object] = {"role": "student", "levels": list(levels)}
    if isinstance(teacher, TextDenoiser):
        return _text_roles(config, teacher, about, device)
    classes = teacher.num_classes
    first = start or teacher
    student = Denoiser(clone_network(first.network, classes), first.process, metadata=about).eval()
    critic = Denoiser(clone_network(teacher.network, classes), teacher.process)
    if config.gradient_checkpointing:
        for model in (student, critic):
            model.network.enable_gradient_checkpointing()
    return student, critic


def _text_roles(config: Distill, teacher: TextDenoiser, about: dict[str, object], device: Device) -> Roles:
    """Copies in float32, adapters on the teacher's own weights, which are in the precision of its passes."""
    teacher.adapter.place(torch.device(device.name), device.dtype)
    teacher.adapter.guidance = config.method.guidance_scale  # matters to networks that are told it
    shared = SharedWeights(teacher.network)
    settings = {"student": config.student.lora, "critic": config.critic.lora}
    copies = {role: clone_network(teacher.network, None) for role, lora in settings.items() if lora is None}
    half = None if config.method.float32_gap else device.dtype
    nn.Module.to(teacher.network, half or torch.float32)
    if (last := last_layer(teacher.network)) is not None:
        last.float()
    networks = {
        role: copies[role] if lora is None else shared.adapted(lora.rank, lora.alpha, lora.targets)
        for role, lora in settings.items()
    }
    if config.gradient_checkpointing:
        teacher.network.enable_gradient_checkpointing(shared.checkpointed)
        for network in copies.values():
            network.enable_gradient_checkpointing()
    student = teacher.with_network(networks["student"], about).eval()
    return student, teacher.with_network(networks["critic"])
