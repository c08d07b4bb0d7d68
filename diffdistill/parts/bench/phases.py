"""Seconds and memory of a step by its phases, which begin where methods of the task are called and return."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from diffdistill.devices import KNOWN, forget_peak, held_memory, peak_memory, synchronize
from diffdistill.parts.bench.measure import Work, silent
from diffdistill.training.loop import Task
from diffdistill.training.tasks.consistency import ConsistencyTask
from diffdistill.training.tasks.distill import DistillTask

FORWARD, CRITIC, GRADIENT, BACKWARD, OPTIMISERS = (
    "student forward", "critic updates", "student gradient", "backward", "optimisers",
)  # fmt: skip
TRAINING = "forward and backward"

Turn = tuple[Any, str, str, str | None]
"""`(object, method, phase that begins at its call, phase that begins at its return)`."""


@dataclass
class Phase:
    """What a phase took of one step: seconds; the most bytes of tensors alive in it beyond those before the step."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass
class Clock:
    """Where the step is. `marks`: the phase that began at each mark, in order."""

    device: torch.device
    seconds: dict[str, Phase] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    open: Any = None
    since: tuple[float, float] = (0.0, 0.0)
    before: int = 0

    def begin(self, phase: str) -> None:
        self.end()
        self.marks.append(phase)
        self.seconds.setdefault(phase, Phase())
        self.open = record_function(f"phase {len(self.marks) - 1}")
        self.open.__enter__()
        self.since = time.perf_counter(), time.process_time()

    def end(self) -> None:
        if self.open is None:
            return
        synchronize(self.device)
        spent = self.seconds[self.marks[-1]]
        spent.seconds += time.perf_counter() - self.since[0]
        spent.cpu_seconds += time.process_time() - self.since[1]
        if self.device.type in KNOWN:
            spent.peak_bytes = max(spent.peak_bytes, peak_memory(self.device) - self.before)
            forget_peak(self.device)
        self.open.__exit__(None, None, None)
        self.open = None


def turns_of(task: Any) -> list[Turn]:
    if isinstance(task, ConsistencyTask):
        return [(each, "step", OPTIMISERS, None) for each in task.phase.updaters]
    if not isinstance(task, DistillTask):
        return [(task.updater, "step", OPTIMISERS, None)]
    turns: list[Turn] = [(each, "step", OPTIMISERS, CRITIC) for each in task.critic_updaters]
    if task.regression is not None:
        turns += [(each, "step", OPTIMISERS, None) for each in task.regression.updaters]
    if task.consistency is not None:
        turns += [(each, "step", OPTIMISERS, None) for each in task.consistency.updaters]
    return [
        *turns,
        (task.method, "critic_noise", CRITIC, None),
        (task.method, "student_gradient", GRADIENT, BACKWARD),
        (task.student_updater, "step", OPTIMISERS, None),
    ]


@contextlib.contextmanager
def watched(task: Task[Any], clock: Clock) -> Iterator[None]:
    """Within, the clock is told of the phases; its methods are put back after."""
    turns = turns_of(task)
    for thing, name, at_call, at_return in turns:
        _wrap(thing, name, at_call, at_return, clock)
    try:
        yield
    finally:
        for thing, name, *_ in turns:
            delattr(thing, name)


def _wrap(thing: Any, name: str, at_call: str, at_return: str | None, clock: Clock) -> None:
    method = getattr(thing, name)

    def told(*values: Any, **named: Any) -> Any:
        clock.begin(at_call)
        result = method(*values, **named)
        if at_return is not None:
            clock.begin(at_return)
        return result

    setattr(thing, name, told)


def phases_of(task: Task[Any], step: Work, first: str, device: torch.device) -> dict[str, Phase]:
    """The phases of one step, in the order in which they began; times and memory of runs of their own."""
    clock = Clock(device)
    _run(task, step, first, clock)
    if device.type in KNOWN:
        return clock.seconds
    seen = Clock(device)
    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        _run(task, step, first, seen)
    for phase, peak in peaks(events.profiler.kineto_results.events(), seen.marks).items():
        clock.seconds[phase].peak_bytes = peak
    return clock.seconds


def _run(task: Task[Any], step: Work, first: str, clock: Clock) -> None:
    if clock.device.type in KNOWN:
        clock.before = held_memory(clock.device)
        forget_peak(clock.device)
    with watched(task, clock):
        clock.begin(first)
        step()
        clock.end()


def peaks(events: Any, marks: list[str]) -> dict[str, int]:
    """The most bytes alive in each phase, of the profiler's allocations and of the beginnings of the marks."""
    changes = [(event.start_ns(), 1, event.nbytes()) for event in events if event.name() == "[memory]"]
    begins = [(event.start_ns(), 0, int(event.name()[6:])) for event in events if event.name().startswith("phase ")]
    held, now, found = 0, marks[0], dict.fromkeys(marks, 0)
    for _, is_change, value in sorted(changes + begins):
        if is_change:
            held += value
        else:
            now = marks[value]
        found[now] = max(found[now], held)
    return found
