"""`diffdistill bench`: speed and memory of steps and sampling, each beside the passes of the bare network it needs,
with the protocol that the figures need to mean anything.
"""

import contextlib
import copy
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from diffdistill.config.schema import Distill, Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.devices import name_of, pick_device
from diffdistill.errors import ConfigError
from diffdistill.machine import load, processor
from diffdistill.methods import METHODS
from diffdistill.outputs import check_output, has_keys, is_stdout, write_answer
from diffdistill.parts.attention.kernels import KERNELS, reset_attention, set_attention
from diffdistill.parts.bench.measure import WORDS, Bare, Row, Seconds, Work, compare, described, needed, timed
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.pipelines.pixel.schedule import stock_levels
from diffdistill.pipelines.text.data import TextSet
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.request import SamplingRequest
from diffdistill.sampling.generate import CPU_ROWS, generate
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.loop import Task
from diffdistill.training.randomness import seed_step
from diffdistill.training.run_folder import environment
from diffdistill.training.tasks.distill import student_task
from diffdistill.training.tasks.teacher import TeacherTask

STEPS = 100
MIDDLE = STEPS // 2  # a step after every warm-up of every method
HEUN_STEPS = 6
# Without its reward a method of rewards is another method of the table; a reward's cost is its own network's.
COMPARED = tuple(name for name in METHODS.names() if name not in ("diff_instruct_pp", "diff_instruct_star"))
QUICK_METHODS = ("dmd2", "sid")
HEADER = f"{'':<38} {'ours, ms':>24} {'bare, ms':>24} {'ratio':>6} {'of CPU s':>8} {'peak MB':>8} {'bare':>6}"


def run(args: Namespace) -> int:
    """Measure, print, write."""
    if args.json is not None:
        check_output(args.json, "--json", has_keys("protocol", "rows"))
    with contextlib.redirect_stdout(sys.stderr if is_stdout(args.json) else sys.stdout):
        content = _measured(args)
    if args.json is not None:
        write_answer(args.json, content)
    return 0


def _measured(args: Namespace) -> dict[str, Any]:
    """The figures with their protocol, printed as they come."""
    if args.config is not None:
        return _measured_run(args)
    device = Device(args.mixed_precision)
    if args.device is not None:
        device.name = pick_device(args.device)
    model = Denoiser.from_pretrained(args.model, device.name)
    batch, repeats = args.batch_size or (4 if args.quick else 8), 2 if args.quick else 3
    bench = Bench(model, device, batch, repeats, QUICK_METHODS if args.quick else COMPARED)
    about = protocol(bench, args)
    told(about)
    rows = []
    for row in bench.rows():
        print(line(row), flush=True)
        rows.append(row)
    for name, reason in bench.left_out.items():
        print(f"distill {name}: left out, for {reason}")
    print("\nattention, forward pass of the bare network, ms")
    kernels = list(bench.attention())
    for name, seconds in kernels:
        print(f"{name:<38} {'does not run here' if seconds is None else milliseconds(seconds):>24}")
    print("\nbare: the passes of the network alone, timed in turns with ours; of them")
    for name, words in WORDS.items():
        print(f"  {name:<18} {words}")
    return {
        "protocol": about,
        "rows": [row.record() for row in rows],
        "left_out": bench.left_out,
        "attention": {name: None if seconds is None else asdict(seconds) for name, seconds in kernels},
    }


def _measured_run(args: Namespace) -> dict[str, Any]:
    """A step of the run of a config."""
    from diffdistill.parts.bench.runs import measured

    repeats = 2 if args.quick else 3
    place = Device("no").name if args.device is None else pick_device(args.device)
    about = {"config": " ".join([args.config, *args.overrides]), **circumstances(repeats, place)}
    told(about)

    def say(row: Row, phases: dict[str, Any]) -> None:
        print(line(row))
        for name, spent in phases.items():
            times = f"{1e3 * spent['seconds']:.1f}, CPU {1e3 * spent['cpu_seconds']:.1f}"
            print(f"  {name:<36} {times:>24} {'':>40} {spent['peak_bytes'] / 1e6:>8.1f}", flush=True)

    return {"protocol": about, **measured(args.resolved, args, say)}


def told(about: dict[str, Any]) -> None:
    for key, value in about.items():
        print(f"{key.replace('_', ' '):<16} {value}")
    print(f"\n{HEADER}")


def circumstances(repeats: int, place: torch.device) -> dict[str, Any]:
    """What every protocol says of the machine and its state."""
    facts = environment()
    return {
        "device": described_device(place),
        "threads": facts["threads"],
        "load": f"{load()} processes on {facts['cpu_count']} cores when it began",
        "repeats": f"{repeats} pairs after one to warm up; median (least to most), ratio of the pairs' median",
        "versions": ", ".join(f"{name} {facts[name]}" for name in ("diffdistill", "torch", "diffusers", "python")),
        "date": facts["started"],
    }


def described_device(place: torch.device) -> str:
    return f"{place.type}, {processor() if place.type == 'cpu' else name_of(place)}"


def protocol(bench: "Bench", args: Namespace) -> dict[str, Any]:
    """What a reader must know before comparing two tables."""
    weights = sum(parameter.numel() for parameter in bench.model.network.parameters())
    found = circumstances(bench.repeats, bench.place)
    return {
        "model": args.model,
        "weights_sha256": weights_digest(locate(args.model))[:16],
        "network": f"{type(bench.model.network).__name__}, {weights / 1e6:.2f} million weights",
        "images": "x".join(map(str, bench.model.image_shape)),
        "batch": bench.batch,
        "device": found.pop("device"),
        "dtype": str(bench.device.dtype or torch.float32).removeprefix("torch."),
        **found,
    }


def milliseconds(seconds: Seconds) -> str:
    return f"{1e3 * seconds.median:.1f} ({1e3 * seconds.least:.1f} to {1e3 * seconds.most:.1f})"


def line(row: Row) -> str:
    text = (
        f"{row.name:<38} {milliseconds(row.ours):>24} {milliseconds(row.bare):>24} {row.ratio:>6.2f} "
        f"{row.ratio_cpu:>8.2f} {row.peak_bytes / 1e6:>8.1f} {row.bare_peak_bytes / 1e6:>6.1f}"
    )
    if row.images:
        return f"{text}\n  {row.images / row.ours.median:.1f} images/s, bare {row.images / row.bare.median:.1f}"
    return f"{text}\n  bare: {row.passes}"


# ---- what is measured


@dataclass(frozen=True)
class Bench:
    """model: whose network is measured, on its device; batch: images a step; repeats: of each pair."""

    model: Denoiser
    device: Device
    batch: int
    repeats: int
    methods: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # a method that cannot have this teacher, and why

    @property
    def place(self) -> torch.device:
        return next(self.model.parameters()).device

    def bare(self, model: Denoiser) -> Bare:
        """A copy of the network alone, so that gradients of the two ways do not meet."""
        return Bare(copied(model), self.batch, self.device.autocast)

    def rows(self) -> Iterator[Row]:
        yield from self.passes()
        if not self.model.draws_texts:  # whose networks nothing here trains from the start
            yield self.train()
        yield from self.distill()
        yield from self.sampling()

    def compare(self, name: str, ours: Work, bare: Bare, passes: list[str]) -> Row:
        return compare(name, ours, lambda: bare.run(passes), described(passes), self.place, self.repeats)

    def passes(self) -> Iterator[Row]:
        """The denoiser beside its network: what preconditioning and float32 outputs cost."""
        bare, model = self.bare(self.model), copied(self.model).requires_grad_(True)
        x = torch.randn(self.batch, *model.image_shape, device=self.place)
        sigma, labels = torch.ones(self.batch, device=self.place), bare.inputs[2]

        def forward() -> None:
            with torch.no_grad(), self.device.autocast():
                model(x, sigma, labels)

        def forward_backward() -> None:
            model.zero_grad(set_to_none=True)
            with self.device.autocast():
                x0 = model(x, sigma, labels)
            x0.backward(torch.ones_like(x0))

        yield self.compare("denoiser, forward", forward, bare, ["forward"])
        yield self.compare("denoiser, forward + backward", forward_backward, bare, ["train"])

    def data(self) -> ImageSet | TextSet:
        """Noise: how images look changes no time."""
        count = max(256, self.batch)
        if self.model.draws_texts:
            ids = self.model.example_condition(count, self.place)
            assert ids is not None
            return TextSet(ids, torch.randn(count, *self.model.image_shape), None, "noise", "")
        images = torch.randint(0, 256, (count, *self.model.image_shape), dtype=torch.uint8)
        classes = self.model.num_classes
        return ImageSet(images, None if classes is None else torch.arange(count) % classes, None, None, "noise", "")

    def train(self) -> Row:
        """A step of `train`, on the network its settings mean for images of this shape."""
        config = Train(output_dir=".", max_train_steps=STEPS, train_batch_size=self.batch)
        data = self.data()
        assert isinstance(data, ImageSet)
        task = TeacherTask(config, data, self.device)
        return self.compare("train, one step", step_of(task), self.bare(task.model), ["train"])

    def distill(self) -> Iterator[Row]:
        """A step of each method with its default settings: student, critic updates, gradient, optimisers, averages."""
        data, bare = self.data(), self.bare(self.model)
        for name in self.methods:
            config = Distill(output_dir=".", max_train_steps=STEPS, train_batch_size=self.batch, method={"name": name})
            try:
                task = student_task(config, copied(self.model), data, self.device)
            except ConfigError as error:
                self.left_out[name] = str(error)
                continue
            passes = needed(config.method, config.critic.updates_per_step)
            yield self.compare(f"distill {name}, one step", step_of(task), bare, passes)

    def sampling(self) -> Iterator[Row]:
        """`sample` from noise to bytes, beside as many forward passes of as many images."""
        student = copied(self.model, {"role": "student", "levels": list(one_step(self.model))})
        yield self.sample("sample, teacher", self.model, HEUN_STEPS)
        yield self.sample("sample, student", student, 1)

    def sample(self, name: str, model: Denoiser, steps: int) -> Row:
        rows = min(self.batch, model.network_rows(self.place), CPU_ROWS if self.place.type == "cpu" else self.batch)
        bare = Bare(copied(self.model), rows, torch.no_grad)
        # Without guidance, which would make each pass one of twice the images.
        request = (
            SamplingRequest(steps, prompts=["a picture"], guidance_scale=1.0)
            if model.draws_texts
            else SamplingRequest(steps)
        )
        plan = plan_sampling(model, request)
        calls = plan.evaluations * math.ceil(self.batch / rows)

        def images() -> None:
            list(generate(model, num_images=self.batch, batch_size=self.batch, request=request))

        return compare(
            f"{name}, {plan.sampler}, {plan.evaluations} pass{'' if plan.evaluations == 1 else 'es'}",
            images,
            lambda: bare.run(["forward"] * calls),
            f"{calls} x forward",
            self.place,
            self.repeats,
            images=self.batch,
        )

    def attention(self) -> Iterator[tuple[str, Seconds | None]]:
        """Each kernel of attention that runs on this network here, with the seconds of a forward pass; else None."""
        bare = self.bare(self.model)
        for policy in ("auto", *KERNELS):
            try:
                attention = set_attention(
                    bare.network, policy, run=bare.model.example_pass, context=self.device.autocast
                )
            except ConfigError:
                yield policy, None
                continue
            bare.forward()
            yield str(attention), Seconds.of([timed(bare.forward, self.place).wall for _ in range(self.repeats)])
        reset_attention(bare.network)


def copied(model: Denoiser, metadata: dict[str, Any] | None = None) -> Denoiser:
    """The model with a copy of its network; of a pipeline's other parts, which nothing here changes, there is one."""
    network = copy.deepcopy(model.network)
    if isinstance(model, TextDenoiser):
        return model.with_network(network, metadata)
    null = None if metadata is not None else model.null_class
    return Denoiser(network, model.process, null_class=null, metadata=metadata or model.metadata)


def one_step(model: Denoiser) -> tuple[float, ...]:
    """The level of a student of one step."""
    if isinstance(model, TextDenoiser):
        return text_schedule(model.adapter, model.process, 1, None).levels
    return stock_levels(1, 2.5)


def step_of(task: Task) -> Work:
    def step() -> None:
        seed_step(0, MIDDLE)
        task.update(MIDDLE)

    return step
