"""The verbs that train: set up the folder, build the task, run the loop, publish the model."""

import os
import platform
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffdistill import __version__
from diffdistill.config import Resolved, load_config
from diffdistill.config.schema import Distill, Run, Train
from diffdistill.data import ImageSet, load_images
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DiskError
from diffdistill.files import read_json, write_json
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.pipelines.text.data import TextSet, text_data
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.reporting.report import write_report
from diffdistill.reporting.text_card import card_of
from diffdistill.training.device import Device
from diffdistill.training.loop import Task, flat, run_loop
from diffdistill.training.observer import observer_of


def train(resolved: Resolved) -> int:
    """`diffdistill train`: a teacher by denoising score matching, into `model/`."""
    from diffdistill.training.tasks.teacher import TeacherTask

    config: Train = resolved.config
    device = Device(config.mixed_precision, config.num_threads)
    data = training_data(config)
    task = TeacherTask(config, data, device)
    attention = choose_attention(task, config, device)
    return execute(task, resolved, data, "model", chosen(attention, device), role="teacher")


def distill(resolved: Resolved) -> int:
    """`diffdistill distill`: a one- or few-step student of a teacher, into `student/`."""
    from diffdistill.training.tasks.distill import DistillTask

    config: Distill = resolved.config
    device = Device(config.mixed_precision, config.num_threads)
    teacher = Denoiser.from_pretrained(config.teacher, device.name)
    teacher.check_teacher(config.teacher)
    data = distillation_data(config, teacher)
    task = DistillTask(config, teacher, data, device)
    attention = choose_attention(task, config, device)
    if task.first == config.max_train_steps:
        print(
            f"all {task.first} steps are regression on the teacher's trajectories, as student.regression.steps asks: "
            f"a first stage, for initialize_from"
        )
    reward = {} if task.method.reward is None else {"reward": task.method.reward.versions()}
    # A student of converted weights is under their licence too, so its card must name them.
    source = teacher.metadata.get("source") or teacher.metadata.get("teacher_source")
    return execute(
        task, resolved, data, "student", chosen(attention, device), teacher,
        role="student", levels=task.levels, teacher=config.teacher, teacher_source=source, **reward,
    )  # fmt: skip


def chosen(attention: str, device: Device) -> dict[str, str]:
    """What `auto` became on this machine, for the record."""
    return {"attention": attention, "mixed_precision": device.precision}


def choose_attention(task: Task, config: Run, device: Device) -> str:
    """Let every network of the run attend by `config.attention`; the kernels seen to run, for the record."""
    found: dict[str, str] = {}
    seen: dict[int, str] = {}  # roles may share their layers
    for name, model in task.denoisers.items():
        layers = model.layers
        if id(layers) not in seen:
            seen[id(layers)] = str(
                set_attention(layers, config.attention, run=model.example_pass, context=device.autocast)
            )
        found[name] = seen[id(layers)]
    same = len(set(found.values())) == 1
    return next(iter(found.values())) if same else "; ".join(f"{name} {text}" for name, text in found.items())


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


def execute(
    task: Task,
    resolved: Resolved,
    data: ImageSet | TextSet,
    name: str,
    record: dict[str, str],
    example: Denoiser | None = None,
    **card: Any,
) -> int:
    """Run a task in its folder and publish the averaged model with its card and the report."""
    config: Run = resolved.config
    observer = observer_of(config, data)  # first: what it asks for in vain must not leave a folder behind
    folder = open_folder(config, resolved, record)
    if example is not None and config.sample_every:
        observer.grid(example, folder / "samples" / "teacher.png")
    evaluation = run_loop(task, config, folder, observer)
    model = task.averaged()
    if not evaluation and config.evaluation.at_end:  # a finished run, resumed
        evaluation = observer.evaluate(model)
    machine = read_json(folder / "environment.json")
    write_json(folder / "environment.json", machine | {"peak_memory_mb": round(peak_memory() / 1e6)})
    if not (folder / name).exists():
        provenance = {
            "diffdistill": __version__,
            "config_sha256": resolved.sha256,
            "data": {"path": data.name, "fingerprint": data.fingerprint},
            **{key: value for key, value in card.items() if key not in ("role", "levels")},
        }
        model.save_pretrained(
            folder / name, role=card["role"], levels=card.get("levels", ()), **provenance,
            card=lambda metadata: card_of(metadata=metadata, evaluation=evaluation, config=resolved.text_yaml),
        )  # fmt: skip
    if evaluation:
        write_json(folder / "evaluation.json", {card["role"]: evaluation} | recorded(card.get("teacher"), evaluation))
    write_report(folder)
    print(f"{folder / name}: the model; {folder / 'report.html'}: curves, grids and figures")
    return 0


def recorded(teacher: str | None, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The teacher's own evaluations, the best first, made by the protocol of `evaluation`.

    Measuring a many-step teacher takes longer than distilling it, so its figures are kept beside its weights
    (`evaluations.json`, written by `scripts/evaluate_teacher.py`) and used only where the weights, the number of
    images, the features and the reference are the same to the last bit. Of several samplers the best is shown.
    """
    folder = locate(teacher) if teacher else None
    if folder is None or not (folder / "evaluations.json").is_file():
        return {}
    rows: dict[int, Any] = {}
    digest = weights_digest(folder)
    for entry in read_json(folder / "evaluations.json"):
        found, protocol = entry["evaluation"], entry["evaluation"]["protocol"]
        same = all(protocol[key] == evaluation["protocol"][key] for key in ("num_images", "features", "reference"))
        if not same or entry["weights_sha256"] != digest:
            continue
        calls = entry["sampling"]["evaluations"]
        if calls not in rows or flat(found)["fid"] < flat(rows[calls])["fid"]:
            rows[calls] = found | {"sampling": entry["sampling"]}
    best_first = sorted(rows.items(), key=lambda row: flat(row[1])["fid"])
    return {"teacher" if i == 0 else f"teacher at {calls}": row for i, (calls, row) in enumerate(best_first)}


def open_folder(config: Run, resolved: Resolved, record: dict[str, str]) -> Path:
    """The run folder: new, or the one to resume (with the same settings but for length and logging).

    record: what `auto` became, for `environment.json`.
    """
    folder = Path(config.output_dir)
    settings = folder / "config.yaml"
    if folder.exists() and any(folder.iterdir()):
        if config.resume_from_checkpoint is None:
            raise ConfigError(
                f"'{folder}' already holds a run; set output_dir to a new folder, or "
                f"resume_from_checkpoint=latest to continue it"
            )
        if settings.exists():
            check_same(config, settings)
            warn_of_precision(folder / "environment.json", record["mixed_precision"])
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        settings.write_text(resolved.text_yaml)
        write_json(folder / "environment.json", environment() | record)
    except OSError as error:
        raise DiskError(f"cannot write to '{folder}' ({error.strerror}); choose another output_dir") from error
    return folder


# What may change between a run and its continuation without making it another run.
FREE = {
    "output_dir",
    "resume_from_checkpoint",
    "max_train_steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluation",
}


def check_same(config: Run, settings: Path) -> None:
    before = load_config(type(config), settings).config
    changed = [
        key for key in type(config).model_fields if key not in FREE and getattr(before, key) != getattr(config, key)
    ]
    if changed:
        raise ConfigError(
            f"'{settings.parent}' was run with other {', '.join(changed)}; resume with its own config.yaml, or "
            f"set another output_dir"
        )


def warn_of_precision(environment: Path, precision: str) -> None:
    """`auto` may mean another precision on another machine."""
    before = read_json(environment).get("mixed_precision") if environment.is_file() else None
    if before not in (None, precision):
        print(f"resuming with mixed_precision={precision} what ran with {before}: results will differ")


def environment() -> dict[str, Any]:
    """What a reader needs to judge the speed and repeat the run; no paths, no user names."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{package: version(package) for package in ("torch", "diffusers", "accelerate", "safetensors", "numpy")},
        "diffdistill": __version__,
        "command": " ".join(["diffdistill", *sys.argv[1:]]),
    }


def peak_memory() -> int:
    """Most bytes this process ever held: of the GPU where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
