"""What is measured: passes, training steps of every method, sampling, attention kernels."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from diffdistill.config.schema import Distill, Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.methods import METHODS, choices_of
from diffdistill.parts.attention.kernels import KERNELS, reset_attention, set_attention
from diffdistill.parts.bench.measure import Row, Seconds, Work, compare, timed
from diffdistill.parts.bench.passes import Bare, described, needed
from diffdistill.pipelines.pixel.schedule import stock_levels
from diffdistill.sampling.generate import CPU_ROWS, generate, plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.loop import Task
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask

STEPS = 100
MIDDLE = STEPS // 2  # a step after every warm-up of every method
HEUN_STEPS = 6


# Without its reward a method of rewards is another method of the table; a reward's cost is its own network's.
COMPARED = tuple(name for name in METHODS if name not in ("diff_instruct_pp", "diff_instruct_star"))


@dataclass(frozen=True)
class Bench:
    """model: whose network is measured, on its device; batch: images a step; repeats: of each pair."""

    model: Denoiser
    device: Device
    batch: int
    repeats: int
    methods: tuple[str, ...] = COMPARED

    @property
    def place(self) -> torch.device:
        return next(self.model.parameters()).device

    def bare(self, model: Denoiser) -> Bare:
        """A copy of the network alone, so that gradients of the two ways do not meet."""
        return Bare(copy.deepcopy(model), self.batch, self.device.autocast)

    def rows(self) -> Iterator[Row]:
        yield from self.passes()
        yield self.train()
        yield from self.distill()
        yield from self.sampling()

    def compare(self, name: str, ours: Work, bare: Bare, passes: list[str]) -> Row:
        return compare(name, ours, lambda: bare.run(passes), described(passes), self.place, self.repeats)

    def passes(self) -> Iterator[Row]:
        """The denoiser beside its network: what preconditioning and float32 outputs cost."""
        bare, model = self.bare(self.model), copy.deepcopy(self.model).requires_grad_(True)
        x = torch.randn(self.batch, *model.image_shape, device=self.place)
        sigma, labels = torch.ones(self.batch, device=self.place), bare.inputs[2]

        def forward() -> None:
            with torch.no_grad(), self.device.autocast():
                model(x, sigma, labels)

        def both() -> None:
            model.zero_grad(set_to_none=True)
            with self.device.autocast():
                x0 = model(x, sigma, labels)
            x0.backward(torch.ones_like(x0))

        yield self.compare("denoiser, forward", forward, bare, ["forward"])
        yield self.compare("denoiser, forward + backward", both, bare, ["train"])

    def data(self) -> ImageSet:
        """Noise: how images look changes no time."""
        count = max(256, self.batch)
        images = torch.randint(0, 256, (count, *self.model.image_shape), dtype=torch.uint8)
        classes = self.model.num_classes
        return ImageSet(images, None if classes is None else torch.arange(count) % classes, None, None, "noise", "")

    def train(self) -> Row:
        """A step of `train`, on the network its settings mean for images of this shape."""
        config = Train(output_dir=".", max_train_steps=STEPS, train_batch_size=self.batch)
        task = TeacherTask(config, self.data(), self.device)
        return self.compare("train, one step", step_of(task), self.bare(task.model), ["train"])

    def distill(self) -> Iterator[Row]:
        """A step of each method with its default settings: student, critic updates, gradient, optimisers, averages."""
        data, bare = self.data(), self.bare(self.model)
        for name in self.methods:
            config = Distill(output_dir=".", max_train_steps=STEPS, train_batch_size=self.batch, method={"name": name})
            task = DistillTask(config, copy.deepcopy(self.model), data, self.device)
            passes = needed(choices_of(config.method), config.critic.updates_per_step)
            yield self.compare(f"distill {name}, one step", step_of(task), bare, passes)

    def sampling(self) -> Iterator[Row]:
        """`sample` from noise to bytes, beside as many forward passes of as many images."""
        network, process = copy.deepcopy(self.model.network), self.model.process
        student = Denoiser(network, process, metadata={"role": "student", "levels": list(stock_levels(1, 2.5))})
        yield self.sample("sample, teacher", self.model, HEUN_STEPS)
        yield self.sample("sample, student", student, 1)

    def sample(self, name: str, model: Denoiser, steps: int) -> Row:
        rows = min(self.batch, CPU_ROWS) if self.place.type == "cpu" else self.batch
        bare = Bare(copy.deepcopy(self.model), rows, torch.no_grad)
        plan = plan_sampling(model, steps=steps)
        calls = plan.evaluations * math.ceil(self.batch / rows)

        def images() -> None:
            list(generate(model, num_images=self.batch, batch_size=self.batch, steps=steps))

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
                found = set_attention(bare.network, policy, context=self.device.autocast)
            except ConfigError:
                yield policy, None
                continue
            bare.forward()
            yield str(found), Seconds.of([timed(bare.forward, self.place) for _ in range(self.repeats)])
        reset_attention(bare.network)


def step_of(task: Task) -> Work:
    def step() -> None:
        seed_step(0, MIDDLE)
        task.update(MIDDLE)

    return step
