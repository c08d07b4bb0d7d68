"""The task of `train` for each objective, and the model that it begins with."""

import torch

from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.training.batches import training_data
from diffdistill.training.device import Device
from diffdistill.training.tasks.consistency_training import ConsistencyTraining
from diffdistill.training.tasks.ddo import DDOTask
from diffdistill.training.tasks.raft import RaftTask
from diffdistill.training.tasks.scheduled import ScheduledTask
from diffdistill.training.tasks.teacher import TeacherTask

TASKS: dict[str, type[TeacherTask]] = {
    "denoising": TeacherTask, "ddo": DDOTask, "consistency": ConsistencyTraining, "scm": ConsistencyTraining,
    "raft": RaftTask, "scheduled_sampling": ScheduledTask,
}  # fmt: skip
"""By `objective.name`."""


def task_of(config: Train, device: Device) -> tuple[TeacherTask, ImageSet, Denoiser | None]:
    """`(task, data, start)` of a run; start: the model of `initialize_from` as it was read, None without one.

    ConfigError, DataError or CheckpointError for what does not fit together.
    """
    start = starting_model(config)
    data = training_data(config, start, whose="model of initialize_from")
    return TASKS[config.objective.name](config, data, device, start), data, start


def starting_model(config: Train) -> Denoiser | None:
    """The model that `initialize_from` names, on the CPU; ConfigError for one that train cannot go on with."""
    name = config.initialize_from
    if name is None:
        return None
    start = Denoiser.from_pretrained(name, torch.device("cpu"))
    if start.draws_texts:
        raise ConfigError(
            f"initialize_from '{name}' draws texts, and train makes models of images with classes or none; give one "
            f"of these, or use align"
        )
    if start.noise.heavy and not config.objective.any_noise:
        raise ConfigError(
            f"initialize_from '{name}' was trained under Student's t noise (PFGM++), and objective.name="
            f"{config.objective.name} is made for Gaussian noise; choose another objective or another model"
        )
    if start.role == "student":
        raise ConfigError(
            f"initialize_from '{name}' is {start.described_as}, and train goes on with a denoiser at all levels; give "
            f"the diffusion model it was made from"
        )
    guided = config.class_dropout and config.objective.denoises
    if start.num_classes is not None and start.null_class is None and guided:
        print(f"'{name}' has no null class: class_dropout is not used, and there will be no guidance")
    return start
