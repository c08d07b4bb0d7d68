"""`diffdistill bench --config CONFIG`: a step of that very run, beside the passes that it made."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from diffdistill.config import Resolved
from diffdistill.config.align import Align
from diffdistill.config.schema import Run, Train
from diffdistill.devices import pick_device
from diffdistill.parts.bench.measure import Row, Work, compare
from diffdistill.parts.bench.passes import Pass, Recorder, settled
from diffdistill.parts.bench.phases import FORWARD, TRAINING, phases_of
from diffdistill.training.batches import training_pairs
from diffdistill.training.device import Device
from diffdistill.training.kinds import kind_of
from diffdistill.training.loop import Task
from diffdistill.training.randomness import seed_step
from diffdistill.training.run import choices, loaded, pipeline_of
from diffdistill.training.tasks.align import AlignTask
from diffdistill.training.tasks.by_objective import task_of as task_of_objective
from diffdistill.training.tasks.consistency import ConsistencyTask
from diffdistill.training.tasks.distill import DistillTask, student_task


def task_of(resolved: Resolved[Any], device: Device) -> Any:
    """The task of a run, as its verb makes it."""
    config = resolved.config
    if isinstance(config, Train):
        return task_of_objective(config, device)[0]
    if isinstance(config, Align):
        return AlignTask(config, pipeline_of(config, device), training_pairs(config)[0], device)
    teacher = loaded(config, device)
    teacher.check_teacher(config.teacher)
    return student_task(config, teacher, kind_of(teacher).data(config, teacher), device)


def steps_of(task: Any, config: Run) -> Iterator[tuple[str, int, str]]:
    """`(name, number, first phase)` of a step of each kind that the run has."""
    verb = type(config).__name__.lower()
    if isinstance(task, ConsistencyTask):
        yield f"{verb} {task.config.method.name}, one step", config.max_train_steps // 2, TRAINING
        return
    if not isinstance(task, DistillTask):
        yield f"{verb}, one step", config.max_train_steps // 2, TRAINING
        return
    if task.started is not None:
        yield f"{verb}, one step of {task.started}", 0, TRAINING
    if task.first < config.max_train_steps:
        yield f"{verb} {task.config.method.name}, one step", (task.first + config.max_train_steps) // 2, FORWARD


def networks_of(task: Any) -> list[tuple[Any, Sequence[Any]]]:
    """Every network that a step calls, with the layers of it that a discriminator reads."""
    if not hasattr(task, "denoisers"):
        return [(network, ()) for network in (task.network, task._reference()) if network is not None]
    networks = [each.network for each in task.denoisers.values()]
    found: dict[int, tuple[Any, Sequence[Any]]] = {id(network): (network, ()) for network in networks}
    if isinstance(task, DistillTask) and (term := task.method.adversarial) is not None:
        read = term.feature_network
        found[id(read.network)] = read.network, tuple(read.check_taps(term.discriminator.taps).values())
    return list(found.values())


def recorded(task: Any, step: Work, device: Device) -> list[Pass]:
    with Recorder(networks_of(task), device.autocast) as passes:
        step()
    return settled(passes)


def described(passes: Sequence[Pass]) -> str:
    return "; ".join(f"{count} x {words}" for words, count in Counter(each.described() for each in passes).items())


def measured(resolved: Resolved[Any], args: Namespace, say: Callable[[Row, dict[str, Any]], None]) -> dict[str, Any]:
    """The protocol and a row for each kind of step, with its phases, each told as it comes."""
    config: Run = resolved.config
    device = Device(config.mixed_precision, config.num_threads)
    if args.device is not None:
        device.name = pick_device(args.device)
    task = task_of(resolved, device)
    choices(task, config, device)
    rows = []
    for name, number, first in steps_of(task, config):
        step = step_of(task, config.seed, number)
        step()  # pairs, encoded prompts and moments are made at the first
        passes = recorded(task, step, device)
        place = torch.device(device.name)

        def again(passes: list[Pass] = passes) -> None:
            for each in passes:
                each.again()
            forget(task)

        row = compare(name, step, again, described(passes), place, 2 if args.quick else 3)
        phases = {phase: asdict(spent) for phase, spent in phases_of(task, step, first, place).items()}
        say(row, phases)
        rows.append(row.record() | {"phases": phases})
    return {"config": resolved.text_yaml, "rows": rows}


def step_of(task: Task[Any], seed: int, number: int) -> Work:
    def step() -> None:
        seed_step(seed, number)
        task.update(number)

    return step


def forget(task: Any) -> None:
    """The gradients that the bare passes left, which the next step would add to."""
    for part in task.parts.values():
        if isinstance(part, torch.nn.Module | torch.optim.Optimizer):
            part.zero_grad(set_to_none=True)
