"""What an ensemble of rewards keeps a student from: one of three rewards is wrong where there are no data.

    python benchmarks/effect_reward_ensembles.py                             seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_reward_ensembles.py --seeds 0 --teacher-steps 20 --steps 20 --images 64      a look

Eight Gaussians on a circle in the plane; wanted are points to the right, and none beyond the circle's rim. Two rewards
say so, each with a wave of its own; the third has never seen points beyond the rim, and likes them better the further
they are. One-step students of a small teacher by Diff-Instruct++, with no reward, the third alone, and the three by
`method.reward.combine`, on the scales of the data, all at one strength (`sum` a third of it, for it adds three).
"""

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from small_worlds import PlaneNetwork, Row, arguments, compared, device, points, settings, trained
from torch import Tensor

from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM
from diffdistill.registry import allow_code
from diffdistill.rewards import load_reward, measure_scales
from diffdistill.sampling.generate import generate
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask

RIM, SCALE = 0.65, 0.36
STRENGTHS = (0.1,)
REWARDS = [f"{Path(__file__).resolve()}:{name}" for name in ("one", "another", "blind")]


def wanted(images: Tensor, slope: float = -5.0) -> Tensor:
    """To the right, and not beyond the rim: the true reward of images in [0, 1]."""
    x = 2 * images.flatten(1) - 1
    return x[:, 0] + slope * (x.norm(dim=1) - RIM).relu()


def one(images: Tensor, prompts: Any = None) -> Tensor:
    return wanted(images) + 0.1 * (8 * images.flatten(1)[:, 1]).sin()


def another(images: Tensor, prompts: Any = None) -> Tensor:
    return wanted(images) + 0.1 * (8 * images.flatten(1)[:, 1]).cos()


def blind(images: Tensor, prompts: Any = None) -> Tensor:
    return wanted(images, 15.0)


def arms(scales: dict[str, list[float]], strength: float) -> dict[str, dict[str, Any] | None]:
    of_all = {"sum": dict.fromkeys(REWARDS, 1.0), "scales": scales}
    return {
        "no reward": None,
        "the third alone": {"name": REWARDS[2], "weight": strength / scales[REWARDS[2]][1]},
        "sum": of_all | {"combine": "sum", "weight": strength / 3},
        "worst": of_all | {"combine": "worst", "weight": strength},
        "uncertainty": of_all | {"combine": "uncertainty", "weight": strength},
    }


def distilling(seed: int, options: Namespace, reward: dict[str, Any] | None) -> Distill:
    plain = {"name": "diff_instruct", "level_weight": "none"}
    method = plain if reward is None else {"name": "diff_instruct_pp", "reward": reward}
    rate = {"learning_rate": 3e-4, "betas": (0.0, 0.99), "warmup_steps": 10, "schedule": "linear"}
    return Distill.model_validate({
        "output_dir": "none", "teacher": "small", "seed": seed, "max_train_steps": options.steps + options.start,
        "train_batch_size": 128, "method": method,
        "level": {"law": "lognormal", "mean": -1.0, "std": 1.2},
        "student": {
            "optimizer": rate,
            "regression": {"steps": options.start, "pairs": 4096, "solver_steps": 10},
        },
        "critic": {"level": {"law": "lognormal", "mean": -1.0, "std": 1.2}, "updates_per_step": 2,
                   "optimizer": {"learning_rate": 1e-3, "betas": (0.0, 0.99), "warmup_steps": 10}},
    })  # fmt: skip


def judged(model: Denoiser, images: int) -> Row:
    drawn = torch.cat([part for part, _ in generate(model, num_images=images, seed=1000)]).float() / 255
    x = 2 * drawn.flatten(1) - 1
    beyond = x.norm(dim=1) > RIM + 0.1
    return {
        "true": float(wanted(drawn).mean()),
        "beyond": float(beyond.float().mean()),
        "right": float(x[:, 0].mean()),
    }


def rows_of(seed: int, options: Namespace, data: ImageSet) -> dict[str, Row]:
    torch.manual_seed(seed)
    start = Denoiser(PlaneNetwork(), EDM(SCALE))
    teacher_rate = {"learning_rate": 2e-3, "betas": (0.9, 0.99), "schedule": "cosine", "warmup_steps": 20}
    config = settings(seed, options.teacher_steps, sigma_data=SCALE, train_batch_size=256, optimizer=teacher_rate)
    teacher = trained(TeacherTask(config, data, device(), start))
    scales = measure_scales({name: load_reward(name) for name in REWARDS}, data.images[:5000].float() / 255)
    rows = {"teacher": judged(teacher, options.images)}
    for strength in STRENGTHS:
        for name, reward in arms(scales, strength).items():
            label = name if reward is None else f"{name}, {strength:g}"
            if label not in rows:
                task = DistillTask(distilling(seed, options, reward), copy.deepcopy(teacher), data, device())
                rows[label] = judged(trained(task), options.images)
    return rows


def main() -> None:
    options = arguments(__doc__, teacher_steps=1500, start=200, steps=400, images=2000)
    allow_code()
    data = points()
    compared(options, lambda seed: rows_of(seed, options, data))


if __name__ == "__main__":
    main()
