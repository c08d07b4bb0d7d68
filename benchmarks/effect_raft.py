"""What RAFT does by a reward without a gradient: reward, FID and recall, beside as many steps of denoising.

    python benchmarks/effect_raft.py                                             seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_raft.py --seeds 0 --teacher-steps 20 --steps 10 --kept 32 --images 64        a look

A small teacher of Fashion-MNIST at 8x8 draws K samples a condition; the reward is PIL's: how alike a picture and its
mirror image are (examples/fashion_mnist/symmetry.py). The best of each K and a fifth of real images train it on, and
what comes of that does so once more. Reward, FID and recall are of `--images` pictures of a seed that no run has.
"""

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from small_worlds import Judge, Row, arguments, compared, device, pictures, settings, trained

from diffdistill.alignment.raft import best_of
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.registry import allow_code
from diffdistill.rewards import load_reward
from diffdistill.training.tasks.raft import RaftTask
from diffdistill.training.tasks.teacher import TeacherTask

REWARD = f"{Path(__file__).parents[1] / 'examples' / 'fashion_mnist' / 'symmetry.py'}:symmetry"
RATE = {"learning_rate": 5e-4, "betas": (0.9, 0.99), "schedule": "constant", "warmup_steps": 10}


def further(seed: int, options: Namespace, **objective: Any) -> Any:
    """Settings of a run that goes on with a model."""
    more = {"optimizer": RATE, "ema_decay": 0.98, "initialize_from": "teacher", "objective": objective}
    return settings(seed, options.steps, **more)


def raft(seed: int, options: Namespace, start: Denoiser, data: ImageSet) -> tuple[Denoiser, dict[str, float]]:
    said = {"name": "raft", "reward": REWARD, "candidates": options.candidates, "images": options.kept, "steps": 10}
    task = RaftTask(further(seed, options, **said), data, device(), copy.deepcopy(start))
    return trained(task), task.curated.scores


def rows_of(seed: int, options: Namespace, data: ImageSet, judge: Judge) -> dict[str, Row]:
    reward = load_reward(REWARD)

    def judged(model: Denoiser) -> Row:
        images = judge.drawn(model)
        return {"reward": float(reward(images.float() / 255).mean()), **judge.of(images)}

    teacher = trained(TeacherTask(settings(seed, options.teacher_steps), data, device()))
    rows = {"teacher": judged(teacher)}
    plain = TeacherTask(further(seed, options, name="denoising"), data, device(), copy.deepcopy(teacher))
    rows["denoising"] = judged(trained(plain))
    rows["denoising, twice as long"] = judged(trained(plain, options.steps, options.steps))
    model = teacher
    for turn in ("RAFT", "RAFT, second round"):
        model, scores = raft(seed + 10 * len(rows), options, model, data)
        rows[turn] = judged(model)
        print(f"  {turn}: drawn {scores['reward']:.2f}, kept {scores['reward_kept']:.2f}", flush=True)
    return rows


def of_real(data: ImageSet, judge: Judge, candidates: int) -> None:
    """What choosing alone costs: of real images, K of a class, the first of each K, and the best."""
    assert data.labels is not None
    reward, groups = load_reward(REWARD), judge.images // 10
    rows = torch.stack([(data.labels == c).nonzero()[: groups * candidates, 0].reshape(groups, -1) for c in range(10)])
    images = data.images[rows.flatten()]
    scores = reward(images.float() / 255).reshape(-1, candidates)
    sets = images.reshape(*scores.shape, *images.shape[1:])
    best = best_of(scores)
    for name, chosen in (("any", torch.zeros_like(best)), (f"best of {candidates}", best)):
        row = judge.of(sets[torch.arange(len(sets)), chosen]) | {
            "reward": float(scores[torch.arange(len(sets)), chosen].mean())
        }
        print(f"real images, {name:10} " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)


def main() -> None:
    options = arguments(__doc__, teacher_steps=800, steps=200, candidates=8, kept=640, images=1000)
    allow_code()
    data = pictures()
    judge = Judge(data, options.images, ("fid", "prdc"))
    of_real(data, judge, options.candidates)
    compared(options, lambda seed: rows_of(seed, options, data, judge), first="denoising")


if __name__ == "__main__":
    main()
