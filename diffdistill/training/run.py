"""What the verbs that train do, as functions of their settings: build the task, run it in its folder, publish."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffdistill import processes
from diffdistill.config import Resolved
from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Run, Train
from diffdistill.config.unused import refuse_idle
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import numbers_of
from diffdistill.pipelines.pixel.save import Origin
from diffdistill.pipelines.text.adapter import Adapter, load_pipeline
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.quantize import check_quantize
from diffdistill.pipelines.text.shelf import shelf_of
from diffdistill.pipelines.text.task_lora import load_task_lora
from diffdistill.precision import OWN, Precision, name_of
from diffdistill.reporting.page import opened_picture
from diffdistill.reporting.report import write_report
from diffdistill.reporting.rundata import read_run
from diffdistill.reporting.tables import headline
from diffdistill.showing import in_words, picture, table
from diffdistill.training.attention import choose_attention
from diffdistill.training.batches import described_classes, names_of_classes, training_pairs
from diffdistill.training.device import Device
from diffdistill.training.inputs import data_digests, lora_digest, model_digest, pairs_digest, reward_digests
from diffdistill.training.kinds import kind_of
from diffdistill.training.loop import GO_ON, Observer, Task, run_loop
from diffdistill.training.monitors.images import ImageMonitor
from diffdistill.training.monitors.pairs import PairMonitor
from diffdistill.training.observers import Monitor, usual_observers
from diffdistill.training.publish import DenoiserPublisher, PipelinePublisher, Publisher, publish
from diffdistill.training.resume import Inputs
from diffdistill.training.run_folder import Records, opened, package_versions
from diffdistill.training.sharded.plan import check_parallel, home
from diffdistill.training.signals import held_together, led, stop_requests, stops
from diffdistill.training.speed import kept_math, speed_up
from diffdistill.training.tasks.align import AlignTask
from diffdistill.training.tasks.by_objective import task_of as task_of_objective
from diffdistill.training.tasks.distill import DistillTask, student_task
from diffdistill.training.tasks.kept_pairs import FOLDER as PAIRS
from diffdistill.training.tracking import Trackers

Model = TypeVar("Model")


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run, which a notebook shows with its figures and its last grid.

    folder: of the run. model_folder: of what it published, which stock diffusers loads. metrics: the figures of its
    last evaluation by name; empty where none was made.
    """

    folder: Path
    model_folder: Path
    metrics: dict[str, float]

    @cached_property
    def model(self) -> Denoiser:
        """The published model, read at first use."""
        return Denoiser.from_pretrained(self.model_folder)

    def __repr__(self) -> str:
        figures = {name: f"{value:.4g}" for name, value in self.metrics.items()}
        return in_words("Run", {"": str(self.folder), "model in": self.model_folder.name, **figures})

    def _repr_html_(self) -> str:
        run = read_run(self.folder)
        rows = [(label, value, rest) for label, value, rest in headline(run)]
        rows.append(("Report", str(self.folder / "report.html"), ""))
        shown = opened_picture(run.grids[-1][1]) if run.grids else None
        grid = "" if shown is None else picture(shown, f"step {run.grids[-1][0]:,}")
        return f"<b>{escape(str(self.folder))}</b>{table(rows)}{grid}"


@stops
@processes.together()
@kept_math()
def train(resolved: Resolved[Train]) -> Result:
    """A teacher, by the objective of its settings, into `model/`."""
    config = resolved.config
    check_processes(resolved)
    device = Device(config.mixed_precision, config.num_threads)
    check_parallel(config, device)
    task, data, start = task_of_objective(config, device)
    record = choices(task, config, device)
    origin: dict[str, Any] = {} if start is None else {"initialize_from": config.initialize_from}
    publisher = DenoiserPublisher(
        resolved, data, "model", task.role, levels=task.levels, class_names=data.class_names,
        like=origin_of(config.initialize_from) if config.objective.denoises else None,
        training=config.objective.training, **origin, **descent(start),
    )  # fmt: skip
    record |= classes_of_run(data)
    models = {name: model_digest(model) for name, model in origin.items()}
    inputs = {**data_digests(data), **models, **reward_digests(config)}
    task.keep(Path(config.output_dir), inputs)
    return execute(task, resolved, lambda: ImageMonitor(config, data), publisher, record, inputs)


@stops
@processes.together()
@kept_math()
def distill(resolved: Resolved[Distill]) -> Result:
    """A one- or few-step student of a teacher, into `student/`."""
    config = resolved.config
    check_processes(resolved)
    device = Device(config.mixed_precision, config.num_threads)
    check_parallel(config, device)
    teacher = loaded(config, device)
    teacher.check_teacher(config.teacher)
    refuse_idle(resolved, teacher.draws_texts)
    kind = kind_of(teacher)
    data = kind.data(config, teacher)
    task = student_task(config, teacher, data, device)
    record = choices(task, config, device)
    if task.first == config.max_train_steps:
        print(
            f"all {task.first} steps are the start that student.{task.started} asks for: a first stage, for "
            f"initialize_from"
        )
    reward: dict[str, Any] = {} if task.reward is None else {"reward": task.reward.versions()}
    packed: dict[str, Any] = {} if config.quantize is None else {"trained_on_weights_in": config.quantize}
    said: dict[str, Any] = {} if config.method.training is None else {"training": config.method.training}
    if config.initialize_from is not None:
        said["initialize_from"] = config.initialize_from
    # A student of converted weights is under their licence too, so its card must name them.
    task_lora = task_of(teacher)
    source = teacher.metadata.get("source") or teacher.metadata.get("teacher_source")
    publisher = DenoiserPublisher(
        resolved, data, "student", "student",
        levels=task.levels, teacher=config.teacher, teacher_source=source,
        class_names=names_of_classes(data, teacher), **reward, **packed, **said, **task_lora,
    )  # fmt: skip
    inputs = {
        **data_digests(data),
        "teacher": model_digest(config.teacher),
        **reward_digests(config),
        **lora_digest(task_lora),
    }
    if isinstance(task, DistillTask) and task.regression is not None:
        task.regression.pairs.keep(Path(config.output_dir) / PAIRS, inputs)
    record |= classes_of_run(data)
    return execute(task, resolved, lambda: kind.monitor(config, data, teacher), publisher, record, inputs)


@stops
@processes.together()
@kept_math()
def align(resolved: Resolved[Align]) -> Result:
    """The network of a text-to-image pipeline, trained on pairs, into `model/`."""
    config = resolved.config
    check_processes(resolved)
    device = Device(config.mixed_precision, config.num_threads)
    check_parallel(config, device)
    pairs, held_out = training_pairs(config)
    model = pipeline_of(config, device)
    task = AlignTask(config, model, pairs, device)
    task.keep_moments()
    record = choices(task, config, device)
    inputs = {"data": pairs_digest(pairs.pairs), "model": model_digest(config.model)}
    publisher = PipelinePublisher(task, resolved)
    return execute(task, resolved, lambda: PairMonitor(task, held_out), publisher, record, inputs)


def pipeline_of(config: Align, device: Device) -> Adapter:
    """The pipeline to align, with the bounds of what is kept of its prompts."""
    model = load_pipeline(config.model, precision_of_run(device))
    model.resting = True
    model.kept.limit = config.data.prompt_cache_gb * 1e9
    model.there.limit = config.data.prompt_device_gb * 1e9
    model.shelf = shelf_of(config.model, config.data.prompt_disk_gb)
    return model


def loaded(config: Distill, device: Device) -> Denoiser:
    """The teacher; its network where it can wait until it is known how it fits, its other parts where they rest."""
    check_quantize(config.quantize)
    # Packed weights may fit where these do not.
    place = torch.device("cpu") if config.quantize else home(config, device)
    teacher = Denoiser.from_pretrained(config.teacher, "cpu", precision_of_run(device))
    if not isinstance(teacher, TextDenoiser):
        return teacher.to(place)
    if config.teacher_lora is not None:
        load_task_lora(teacher.adapter, config.teacher_lora, config.teacher_lora_scale)
    read_off(teacher.adapter, config.data.image_size)
    teacher.adapter.resting = True
    teacher.adapter.place(device.name)
    torch.nn.Module.to(teacher.network, place)
    return teacher


def origin_of(model: str | None) -> Origin | None:
    """The folder that a run begins with, which its own model's will be like; None from scratch."""
    return None if model is None else Origin.of(model)


def descent(start: Denoiser | None) -> dict[str, Any]:
    """Of a model that begins with converted weights: whose, for the record; their licence holds for it."""
    source = None if start is None else start.metadata.get("source")
    return {} if source is None else {"source": source}


def task_of(teacher: Denoiser) -> dict[str, Any]:
    """The LoRA on the teacher, for the record; nothing without one."""
    lora = teacher.adapter.task if isinstance(teacher, TextDenoiser) else None
    return {} if lora is None else {"teacher_lora": lora.record()}


def read_off(adapter: Adapter, size: int | None) -> None:
    """A pipeline without an adapter is read off where its parts are, in float32: a device may not hold all at once."""
    if adapter.reads_itself and (size is None or size % adapter.size_multiple == 0):  # else it is refused later
        adapter.image_size = size or adapter.image_size
        adapter.latent_shape  # noqa: B018


def precision_of_run(device: Device) -> Precision:
    """What a run reads a model of texts in: its network as the files have it, for copies of it are trained in float32,
    and the text encoders, which only feed it, in the precision of the passes."""
    return Precision(network=OWN, encoders="float32" if device.dtype is None else name_of(device.dtype))


def classes_of_run(data: Any) -> dict[str, str]:
    """What the labels of a run mean, for the record."""
    described = described_classes(data) if isinstance(data, ImageSet) else None
    return {} if described is None else {"classes": described}


def check_processes(resolved: Resolved) -> None:
    """ConfigError where processes were started differently, or one would have no image of a batch."""
    config: Run = resolved.config
    versions = {f"version of {name}": value for name, value in package_versions().items()}
    processes.agree({"settings": resolved.text_yaml, **versions})
    if (count := processes.size()) > config.train_batch_size:
        raise processes.together_told(
            ConfigError(
                f"train_batch_size is {config.train_batch_size} and there are {count} processes, each of which needs "
                f"an image of it; start no more than that, or raise it"
            )
        )


def choices(task: Task[Model], config: Run, device: Device) -> dict[str, Any]:
    """What `auto` became on this machine, for the record; the task's networks attend by it from here on."""
    networks = task.networks()
    attention = choose_attention(networks, config.attention, device.autocast)
    layers = [(role, network) for role, (network, _) in networks.items()]
    return {
        "attention": attention,
        "speed": speed_up(config.speed, device.name, layers, config.exact),
        "mixed_precision": device.precision,
        "processes": processes.size(),
        "parallel": task.plan.strategy,
    }


def execute(
    task: Task[Model],
    resolved: Resolved,
    watching: Callable[[], Monitor[Model]],
    publisher: Publisher[Model],
    record: dict[str, Any],
    inputs: Inputs,
) -> Result:
    """Run a task in its folder; publish its model with card, figures and report.

    Whatever can be refused is refused by the arguments' own making and by the observers', before there is a folder.
    watching: makes the monitor, in the leader alone. inputs: digests of what the task is made from, which a resumed
    run compares.
    """
    config: Run = resolved.config
    processes.agree({**inputs, "mixed_precision": record["mixed_precision"]})
    monitors: list[Monitor[Model]] = []
    observers: list[Observer] = []

    def observe() -> None:
        monitors.append(watching())
        observers.extend([Records(resolved, record), Trackers(resolved), *usual_observers(config, monitors[0])])

    with stop_requests() as stop, held_together():
        led(observe)
        with opened(config) as folder:
            led(lambda: monitors[0].begin(folder))
            run = run_loop(task, config, folder, observers, inputs)
            stop.sentence = f"stopped when all {run.step} steps were trained and saved; {GO_ON}"
            published = folder / publisher.name
            led(lambda: publish(publisher, task.averaged(), published, run.evaluation))
            led(lambda: write_report(folder))
    return Result(folder, published, processes.share(numbers_of(run.evaluation) if run.evaluation else {}))
