"""Seconds and bytes of two ways to do the same, taken in turns; one of them the passes of the network alone.

A bare pass has no preconditioning, no loss, no optimiser, and the same shapes.
"""

import contextlib
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diffdistill.denoiser import Denoiser
from diffdistill.devices import KNOWN, forget_peak, held_memory, peak_memory, synchronize
from diffdistill.methods.base import Distillation, Method
from diffdistill.methods.consistency import Consistency
from diffdistill.methods.scm import SCM

Work = Callable[[], Any]
WORDS = {
    "forward": "forward",
    "train": "forward + backward to the weights",
    "to_input": "forward + backward to the input",
    "features": "forward of the encoder, real and generated",
    "features_to_input": "backward of the encoder to the input",
}


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

    ratio: median of ours / bare over the pairs, so that a machine that slows down slows both. ours_cpu, bare_cpu,
    ratio_cpu: the same of the seconds that this process computed, on all its threads: with one thread, what others do
    on the machine hardly changes them. peak_bytes: most tensor memory held at once beyond what was held before, so
    weights are not in it.
    """

    name: str
    ours: Seconds
    bare: Seconds
    ratio: float
    ours_cpu: Seconds
    bare_cpu: Seconds
    ratio_cpu: float
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
    wall, cpu = ([[getattr(took, clock) for took in pair] for pair in pairs] for clock in Took._fields)
    peaks = peak_bytes(ours, device), peak_bytes(bare, device)
    return Row(name, *_compared(wall), *_compared(cpu), passes, *peaks, images)


def _compared(pairs: list[list[float]]) -> tuple[Seconds, Seconds, float]:
    """Seconds of ours and of the bare passes, and the median of the pairs' ratios."""
    mine, theirs = (list(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b if b else math.nan for a, b in pairs)
    return Seconds.of(mine), Seconds.of(theirs), ratio


class Took(NamedTuple):
    """Seconds of the clock on the wall, and those that this process computed."""

    wall: float
    cpu: float


def timed(work: Work, device: torch.device) -> Took:
    synchronize(device)
    began, computed = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    return Took(time.perf_counter() - began, time.process_time() - computed)


def peak_bytes(work: Work, device: torch.device) -> int:
    """Most bytes of tensors alive at once during `work`, beyond those alive before it.

    On a GPU the allocator counts. On a CPU the profiler's allocations are added up: resident memory would be that of
    the whole process so far, and what the C library keeps for later would hide what a later run needs.
    """
    if device.type in KNOWN:
        before = held_memory(device)
        forget_peak(device)
        work()
        return peak_memory(device) - before
    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Some builds of the profiler write to the error stream from C++ when it starts and stops."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


# ---- the bare network


TAP = "mid_block"  # where a discriminator reads the encoder


class _Stop(Exception):
    """The tap is reached, the rest is not needed."""


class Bare:
    """A model's network and inputs for it, `batch` images; each method is one pass.

    The input is drawn once: its values do not matter for time.
    """

    def __init__(self, model: Denoiser, batch: int, autocast: Callable[[], Any]):
        self.model, self.network = model, model.network
        self.autocast = autocast
        device = model.device
        self.inputs = self._inputs(model, batch, device)
        self.double = self._inputs(model, 2 * batch, device)

    @staticmethod
    def _inputs(model: Denoiser, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        x, time = model.process.to_network(
            torch.randn(batch, *model.image_shape, device=device), torch.ones(batch, device=device)
        )
        count = model.num_classes
        if count is None:
            return x, time, model.example_condition(batch, device)
        return x, time, torch.arange(batch, device=device) % count

    def call(self, x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
        with self.autocast():
            return self.model._call(x, time, cond)

    def forward(self) -> None:
        with torch.no_grad():
            self.call(*self.inputs)

    def train(self) -> None:
        self.network.requires_grad_(True)
        self.network.zero_grad(set_to_none=True)
        output = self.call(*self.inputs)
        output.backward(torch.ones_like(output))

    def to_input(self) -> None:
        self._to_input(lambda output, tapped: output)

    def features(self) -> None:
        with torch.no_grad(), self._tapped(stop=True), contextlib.suppress(_Stop):
            self.call(*self.double)

    def features_to_input(self) -> None:
        """With the forward pass that the score gap needs anyway."""
        self._to_input(lambda output, tapped: tapped[0])

    def _to_input(self, chosen: Callable[[Tensor, list[Tensor]], Tensor]) -> None:
        self.network.requires_grad_(False)
        x = self.inputs[0].detach().requires_grad_()
        with self._tapped(stop=False) as tapped:
            target = chosen(self.call(x, *self.inputs[1:]), tapped)
        torch.autograd.grad(target, x, torch.ones_like(target))

    @contextlib.contextmanager
    def _tapped(self, stop: bool) -> Any:
        outputs: list[Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(self.model.feature(output))
            if stop:
                raise _Stop

        handle = self.model.check_taps((TAP,))[TAP].register_forward_hook(record)
        try:
            yield outputs
        finally:
            handle.remove()

    def run(self, passes: Sequence[str]) -> None:
        for name in passes:
            getattr(self, name)()


def needed(method: Distillation, critic_updates: int) -> list[str]:
    """The passes that a step of a method cannot do without, those of the student first.

    A consistency model has a teacher's solver step and its own target, or the teacher and two passes of a difference.
    The student's and each critic's pass train weights. The score gap takes teacher and critic as constants, the Fisher
    form differentiates both to the image. A discriminator reads the teacher's encoder, for real and generated images
    in every critic update, and sends its gradient back through the encoder of the pass that gives the teacher's image.
    """
    if isinstance(method, Consistency):
        return ["train", *["forward"] * (3 if method.solver == "heun" else 2)]
    if isinstance(method, SCM):
        return ["train", *["forward"] * 3]
    assert isinstance(method, Method)
    choices = method.choices()
    adversarial = choices.adversarial is not None
    critic = ["train", "features"] if adversarial else ["train"]
    if choices.form == "fisher":
        gradient = ["to_input", "to_input"]
    else:
        gradient = ["features_to_input" if adversarial else "forward", "forward"]
    return ["train", *critic * critic_updates, *gradient]


def described(passes: Sequence[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in Counter(passes).items())
