"""Runs of tiny tasks, a few steps long, and what they leave."""

import json

import torch
from tiny import tiny_teacher

from diffdistill.config.schema import Distill, Train
from diffdistill.data import ImageSet
from diffdistill.training.device import Device
from diffdistill.training.loop import run_loop
from diffdistill.training.observers import usual_observers
from diffdistill.training.store import CheckpointStore, tensors_of
from diffdistill.training.tasks.by_objective import TASKS
from diffdistill.training.tasks.distill import student_task

STEPS = 6


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(30) % 3, None, None, "noise", "0" * 64)


class Watcher:
    """A monitor that uses random numbers, as a real one may; its FID never changes."""

    scores = ()

    def begin(self, folder):
        pass

    def grid(self, model, file):
        torch.randn(3)

    def evaluate(self, model):
        torch.randn(3)
        return {"metrics": {"fid": {"value": 1.0}}}


def settings(kind, folder, **more):
    common = {
        "output_dir": str(folder), "max_train_steps": STEPS, "train_batch_size": 4, "log_every": 1, "sample_every": 2,
        "checkpoint_every": 2, "keep_checkpoints": 10,
    }  # fmt: skip
    if kind == "train":
        network = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
        return Train(**common | more, network=network)
    method = {"name": kind} | more.pop("method", {})
    return Distill(**common | {"student": {"steps": 2}} | more, teacher="tiny", method=method)


def task(config):
    device = Device("no")
    if isinstance(config, Train):
        return TASKS[config.objective.name](config, data(), device)
    return student_task(config, tiny_teacher(), data(), device)


def go(task, config, folder, monitor=None):
    """The loop with the observers of every run."""
    return run_loop(task, config, folder, usual_observers(config, monitor or Watcher()))


def run(kind, folder, **more):
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(kind, folder, **more)
    done = task(config)
    go(done, config, folder)
    return {
        f"{name}.{key}": value.clone() for name, part in done.parts.items() for key, value in tensors_of(part).items()
    }


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def without(folder, step):
    """The folder as a kill after `step` leaves it: later checkpoints absent, the log running ahead and cut."""
    for checkpoint in CheckpointStore(folder / "checkpoints", 10).folders():
        if int(checkpoint.name[5:]) > step:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "los')
