"""Seconds and bytes of two ways to do the same, taken in turns."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]


@dataclass(frozen=True)
class Seconds:
    """Median, least and most of the repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> "Seconds":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One line of the table: ours and the bare passes.

    ratio: median of ours / bare over the pairs, so that a machine that slows down slows both. peak_bytes: most tensor
    memory held at once beyond what was held before, so weights are not in it.
    """

    name: str
    ours: Seconds
    bare: Seconds
    ratio: float
    passes: str
    peak_bytes: int
    bare_peak_bytes: int
    images: int = 0  # made by one run, where the work is sampling

    def record(self) -> dict[str, Any]:
        speed = {"images_per_second": self.images / self.ours.median, "bare": self.images / self.bare.median}
        return asdict(self) | ({"speed": speed} if self.images else {})


def compare(
    name: str, ours: Work, bare: Work, passes: str, device: torch.device, repeats: int, images: int = 0
) -> Row:
    """Run both once to warm up, then in turns; memory in a run of its own, for watching it takes time."""
    ours(), bare()
    pairs = [(timed(ours, device), timed(bare, device)) for _ in range(repeats)]
    mine, theirs = (list(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    peaks = peak_bytes(ours, device), peak_bytes(bare, device)
    return Row(name, Seconds.of(mine), Seconds.of(theirs), ratio, passes, *peaks, images)


def timed(work: Work, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(work: Work, device: torch.device) -> int:
    """Most bytes of tensors alive at once during `work`, beyond those alive before it.

    On a GPU the allocator counts. On a CPU the profiler's allocations are added up: resident memory would be that of
    the whole process so far, and what the C library keeps for later would hide what a later run needs.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _silent() -> Iterator[None]:
    """Some builds of the profiler write to the error stream from C++ when it starts and stops."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
