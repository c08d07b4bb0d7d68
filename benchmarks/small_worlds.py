"""What the benchmarks `effect_*.py` share: two worlds that a core trains in seconds, a loop, a judge, a table.

    pictures()  Fashion-MNIST at 8x8 and a UNet of two resolutions; FID and recall on pixels against all 60,000
    points()    eight Gaussians in the plane, as images of one row and two columns, and a network of four layers

The tasks and losses are the package's own; the loop is that of `diffdistill train` without its files.
"""

import copy
import json
import math
import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffdistill.config.schema import Distill, Train
from diffdistill.data import ImageSet, load_images
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation.evaluator import Evaluator
from diffdistill.matching.micro_batches import Metrics
from diffdistill.request import SamplingRequest
from diffdistill.sampling.generate import generate
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask

UNET = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_levels": (),
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
Row = dict[str, float]
Seen = Callable[[int, Metrics], None] | None


def device() -> Device:
    return Device("no", 1)


def pictures(limit: int | None = None) -> ImageSet:
    """Fashion-MNIST, averaged to 8x8."""
    return load_images("builtin:fashion_mnist", image_size=8, limit=limit)


def settings(seed: int, steps: int, **more: Any) -> Train:
    """Of a run of `train` on pictures: batches of 32, cosine decay from 2e-3, an average of decay 0.99."""
    rate = {"learning_rate": 2e-3, "betas": (0.9, 0.99), "schedule": "cosine", "warmup_steps": 20}
    given = {
        "output_dir": "none", "network": UNET, "seed": seed, "max_train_steps": steps, "train_batch_size": 32,
        "ema_decay": 0.99, "optimizer": rate,
    }  # fmt: skip
    return Train.model_validate(given | more)


def distilling(seed: int, steps: int, method: dict[str, Any], start: int | None = None) -> Distill:
    """Of a run of `distill` on pictures to one step; start: of these steps, how many are regression on 2,048 pairs."""
    rate = {"betas": (0.0, 0.99), "warmup_steps": 10}
    law = {"law": "lognormal", "mean": -0.4, "std": 1.2}
    regression = None if start is None else {"steps": start, "pairs": 2048, "solver_steps": 10}
    student = {"optimizer": rate | {"learning_rate": 5e-4, "schedule": "linear"}, "ema_decay": 0.98}
    return Distill.model_validate({
        "output_dir": "none", "teacher": "small", "seed": seed, "max_train_steps": steps, "train_batch_size": 32,
        "method": method, "level": law, "student": student | {"regression": regression},
        "critic": {"level": law, "updates_per_step": 2, "optimizer": rate | {"learning_rate": 1e-3}},
    })  # fmt: skip


def begun(seed: int, teacher_steps: int, start: int, data: ImageSet) -> tuple[Denoiser, Denoiser]:
    """A teacher of pictures and its one-step student by regression alone, with which all methods begin."""
    teacher = trained(TeacherTask(settings(seed, teacher_steps), data, device()))
    config = distilling(seed, start, {"name": "diff_instruct"}, start)
    return teacher, trained(DistillTask(config, copy.deepcopy(teacher), data, device()))


def matched(config: Distill, teacher: Denoiser, student: Denoiser, data: ImageSet, seen: Seen = None) -> Denoiser:
    """The student that a method makes of one that is begun."""
    task = DistillTask(config, copy.deepcopy(teacher), data, device())
    for model in (task.student, task.ema.module):
        model.load_state_dict(student.state_dict())
    return trained(task, seen=seen)


def trained(task: Any, first: int = 0, steps: int | None = None, seen: Seen = None) -> Denoiser:
    """The average after so many updates of a task (None: all of its settings), from the `first` on.

    seen: is shown the figures of each.
    """
    for step in range(first, first + (steps or task.config.max_train_steps)):
        seed_step(task.config.seed, step)
        figures = task.update(step)
        if seen is not None:
            seen(step, figures)
    model: Denoiser = task.averaged()
    return model.eval()


def asked(model: Denoiser, steps: int = 10) -> SamplingRequest:
    """DPM-Solver++ with so many evaluations, or a student's own step."""
    return SamplingRequest() if model.role == "student" else SamplingRequest(sampler="dpm_solver", steps=steps)


class Judge:
    """FID and recall on pixels of `images` pictures of one seed, by DPM-Solver++ with 10 evaluations; a student's own
    in one step.
    """

    def __init__(self, data: ImageSet, images: int, metrics: Sequence[str] = ("fid",)):
        self.images = images
        self.evaluator = Evaluator(data, "pixels", metrics, floor=False, resamples=0)

    def drawn(self, model: Denoiser, seed: int = 1000, steps: int = 10) -> Tensor:
        batches = generate(model, num_images=self.images, seed=seed, request=asked(model, steps))
        return torch.cat([images for images, _ in batches])

    def of(self, images: Tensor) -> Row:
        found = self.evaluator(images)["metrics"]
        row = {"FID": found["fid"]["value"]}
        return row | ({"recall": found["prdc"]["recall"]} if "prdc" in found else {})


# ---- the plane

RADIUS, WIDTH = 0.5, 0.06


class PlaneNetwork(ModelMixin, ConfigMixin):
    """Four layers that know their level by sines of its logarithm, in the form of a UNet of diffusers."""

    @register_to_config
    def __init__(self, in_channels: int = 1, out_channels: int = 1, sample_size: tuple[int, int] = (1, 2)):
        super().__init__()
        self.conv_in = nn.Linear(2 + 8, 128)
        self.mid_block = nn.Sequential(nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.conv_out = nn.Linear(128, 2)

    def forward(
        self, x: Tensor, time: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        turns = (time.float() / 250).reshape(-1, 1) * torch.tensor([0.5, 1.0, 2.0, 4.0])
        about = torch.cat([turns.sin(), turns.cos()], 1).expand(len(x), 8)
        flat = torch.cat([x.flatten(1), about], 1)
        return (self.conv_out(self.mid_block(self.conv_in(flat))).reshape(x.shape),)


def ring(count: int, generator: torch.Generator | None = None) -> Tensor:
    """`(count, 2)`: eight Gaussians on a circle."""
    angle = torch.randint(0, 8, (count,), generator=generator) * math.pi / 4
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1) + WIDTH * torch.randn(count, 2, generator=generator)


def points(count: int = 20000) -> ImageSet:
    """The ring as images of one row and two columns, in bytes as any image: steps of 1 / 127.5."""
    x = ring(count, torch.Generator().manual_seed(5)).reshape(-1, 1, 1, 2)
    return ImageSet((127.5 * (x + 1)).round().clamp(0, 255).byte(), None, None, None, "ring", "0" * 64)


# ---- runs and tables


def arguments(doc: str | None, *, seeds: Sequence[int] = (0, 1, 2), **defaults: int) -> Namespace:
    """The options of a script: its numbers, `--seeds` and `--json`."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    return options


def compared(options: Namespace, rows_of: Callable[[int], Mapping[str, Row]], first: str | None = None) -> None:
    """Every seed's rows, then the table of them: mean (least to most), and beside `first` the mean difference.

    A seed fixes weights, order and noise, so differences are taken seed by seed.
    """
    start, of_seeds = time.process_time(), []
    for seed in options.seeds:
        of_seeds.append(rows_of(seed))
        for name, row in of_seeds[-1].items():
            print(f"seed {seed}  {name:28} " + "  ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    names = list(dict.fromkeys(name for rows in of_seeds for name in rows))
    print(f"\n{len(options.seeds)} seeds; mean (least to most)" + (f"; [mean less that of {first}]" if first else ""))
    for name in names:
        cells = []
        for figure in of_seeds[0][name]:
            values = [rows[name][figure] for rows in of_seeds]
            cell = f"{figure} {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            if first is not None and name != first:
                less = [rows[name][figure] - rows[first][figure] for rows in of_seeds if figure in rows[first]]
                cell += f" [{statistics.mean(less):+.3f}: {min(less):+.3f} to {max(less):+.3f}]" if less else ""
            cells.append(cell)
        print(f"{name:28} " + "   ".join(cells))
    seconds = time.process_time() - start
    print(f"{seconds:.0f} s of one core")
    if options.json is not None:
        said = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"options": said, "seconds": seconds, "seeds": of_seeds}, indent=1) + "\n")
