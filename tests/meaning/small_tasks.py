"""Tasks around small networks, and what tests ask of a module."""

import torch
from by_hand import process_named
from worlds import gaussian_data, small_network

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import DistillTask

CPU = Device("no")


def distilling(method=None, kind="edm", **more):
    settings = {
        "output_dir": "none", "teacher": "small", "max_train_steps": 8, "train_batch_size": 4,
        "method": method or {"name": "diff_instruct"}, "critic": {"updates_per_step": 1},
    }  # fmt: skip
    teacher = Denoiser(small_network(4), process_named(kind), null_class=3).eval()
    return DistillTask(Distill.model_validate(settings | more), teacher, gaussian_data((0.1, 0.0, -0.2), 0.3), CPU)


def nothing(module):
    """0, with a graph to every weight."""
    return 0 * sum(p.sum() for p in module.parameters())


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])
