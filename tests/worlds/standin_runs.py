"""Tasks of tiny networks on a device, their updates, and what they hold."""

import torch
from diffusers import UNet2DModel
from runs import data, settings
from standin import WAITS

from diffdistill.config.schema import Train
from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.store import tensors_of
from diffdistill.training.tasks.by_objective import TASKS
from diffdistill.training.tasks.distill import student_task

PRECISION = "no"


def smallest(classes=4, **more):
    """A teacher of few operations, each of which costs more here than its numbers do: three classes, and the null."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        num_class_embeds=classes,
    )  # fmt: skip
    return Denoiser(network, EDM(), null_class=3 if classes == 4 else None, **more).eval()


def placed(device):
    """`Device`, by the name of one."""
    where = Device(PRECISION)
    where.name = torch.device(device)
    return where


def on(device, kind, folder, options=None, **more):
    """The task, its networks on the device; options: of the method."""
    config = settings(kind, folder, **more)
    if isinstance(config, Train):
        return TASKS[config.objective.name](config, data(), placed(device))
    if options:
        config = config.model_copy(update={"method": type(config.method)(**options)})
    return student_task(config, smallest().to(device), data(), placed(device))


def updated(task, steps=3):
    """The figures of the last of some updates; `WAITS` counts that one's. In the first the critic moves alone."""
    for step in range(steps):
        seed_step(0, step)
        WAITS.clear()
        metrics = task.update(step)
    return metrics


def numbers(task):
    """All tensors of a task's parts, on the CPU."""
    return {
        f"{name}.{key}": value.cpu() for name, part in task.parts.items() for key, value in tensors_of(part).items()
    }


def near(one, other):
    """Whether the weights are the same but for rounding, beside a tenth of the ten-thousandth by which a step moves
    them: PyTorch takes other kernels for tensors of the CPU's own. A weight without a gradient moves by its sign.
    """
    names = [name for name in one if "optimizer" not in name and one[name].is_floating_point()]
    off = torch.cat([(one[name] - other[name]).abs().flatten() for name in names])
    return one.keys() == other.keys() and bool(off.isfinite().all()) and float((off > 1e-5).float().mean()) < 0.02


def same(one, other):
    """To the last bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
