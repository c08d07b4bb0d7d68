"""The claims of f-distill and Uni-Instruct on images: Fashion-MNIST with classes from 6,000 images down to 60.

    python benchmarks/claims/rare_classes.py teacher            a teacher of that world, without labels
    python benchmarks/claims/rare_classes.py run --jobs 2       students on seeds 0 to 4
    python benchmarks/claims/rare_classes.py all --device cuda --jobs 12 --seconds-budget 200
    python benchmarks/claims/rare_classes.py table              docs/claims.json and the table

Images of 16 x 16 pixels, classes in geometric proportion. Teacher and students are trained by the package's own tasks;
students start as the teacher's denoiser and train for the same number of updates at one rate, that of the package's
recipes. The bundled classifier counts each
student's classes, and gives the features of FID, precision and recall against the imbalanced images. Each process
makes its runs one after another and appends a line a run to a file of its own; what is there is not made again, and
no run begins that would end after the budget.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from report import read, write_claim
from torch import Tensor

from diffdistill.config.networks import Network
from diffdistill.config.schema import Critic, Data, Distill, Level, Student, Train
from diffdistill.data import ImageSet, load_images
from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import frechet_distance
from diffdistill.evaluation.extractors.bundled import ClassifierFeatures
from diffdistill.evaluation.features import load_features
from diffdistill.evaluation.precision_recall import prdc
from diffdistill.methods.base import Adversarial, Method
from diffdistill.methods.dmd2 import DMD2
from diffdistill.methods.f_distill import FDistill
from diffdistill.methods.sid import SiD
from diffdistill.methods.uni_instruct import UniInstruct
from diffdistill.optimizers import Optimizer
from diffdistill.sampling.generate import generate
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask

SIZE, IMBALANCE, MOST = 16, 100.0, 6000
ORDER = (3, 7, 0, 9, 5, 1, 8, 2, 6, 4)  # rank of each class's frequency, 0 the most frequent
TEACHER_STEPS, STEPS, BATCH, DRAWN, JUDGED = 1500, 200, 32, 5000, 2500
RATE, SEEDS = 2e-4, (0, 1, 2, 3, 4)
NETWORK = Network(block_out_channels=(16, 32, 64), layers_per_block=1, attention_head_dim=32, norm_num_groups=8)
LEVEL = Level(law="lognormal", mean=-0.4, std=1.2)
ADVERSARIAL = Adversarial(weight=1e-2)

RIVALS: dict[str, Method] = {
    "DMD2": DMD2(name="dmd2", adversarial=ADVERSARIAL),
    "f-distill, Jensen-Shannon": FDistill(name="f_distill", divergence="jensen_shannon", adversarial=ADVERSARIAL),
    "f-distill, forward KL": FDistill(name="f_distill", divergence="forward_kl", adversarial=ADVERSARIAL),
    "SiD, alpha 1": SiD(name="sid", alpha=1.0),
    "SiDA, alpha 1": SiD(name="sid", alpha=1.0, adversarial=ADVERSARIAL),
    "Uni-Instruct, forward KL": UniInstruct(name="uni_instruct", divergence="forward_kl", adversarial=ADVERSARIAL),
}


def class_counts() -> list[int]:
    return [round(MOST * IMBALANCE ** (-rank / (len(ORDER) - 1))) for rank in ORDER]


def imbalanced() -> tuple[ImageSet, Tensor]:
    """The first images of each class, as many as the class has in this world, without labels; and the labels."""
    every = load_images("builtin:fashion_mnist", image_size=SIZE)
    assert every.labels is not None
    found = [torch.nonzero(every.labels == k).flatten()[:count] for k, count in enumerate(class_counts())]
    chosen = torch.cat(found)
    name = f"Fashion-MNIST {SIZE}x{SIZE}, {IMBALANCE:g}:1"
    return ImageSet(every.images[chosen], None, None, None, name, name), every.labels[chosen]


def train_teacher(folder: Path) -> None:
    data, _ = imbalanced()
    config = Train(
        output_dir=str(folder), max_train_steps=TEACHER_STEPS, train_batch_size=128, network=NETWORK,
        optimizer=Optimizer(learning_rate=2e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=100),
        ema_decay=0.998,
    )  # fmt: skip
    task = TeacherTask(config, data, Device("no"))
    for step in range(TEACHER_STEPS):
        seed_step(0, step)
        task.update(step)
    task.averaged().save_pretrained(folder, role="teacher")


def distilled(teacher: Denoiser, data: ImageSet, rival: str, seed: int, device: Device) -> Denoiser:
    optimizer = Optimizer(learning_rate=RATE, warmup_steps=10, schedule="linear", decay_from=0.3)
    config = Distill(
        output_dir="", seed=seed, max_train_steps=STEPS, train_batch_size=BATCH, method=RIVALS[rival], level=LEVEL,
        student=Student(optimizer=optimizer, ema_decay=0.98), data=Data(image_size=SIZE),
        critic=Critic(updates_per_step=2, level=LEVEL, optimizer=Optimizer(learning_rate=4e-4, warmup_steps=10)),
    )  # fmt: skip
    task = DistillTask(config, teacher, data, device)
    for step in range(STEPS):
        seed_step(seed, step)
        task.update(step)
    return task.averaged()


class Judge:
    """Classes, FID, precision and recall by the bundled classifier, on images enlarged to its 28 x 28."""

    def __init__(self, data: ImageSet, labels: Tensor):
        features = load_features("fashion_mnist")
        assert isinstance(features, ClassifierFeatures)
        self.features, generator = features, torch.Generator().manual_seed(0)
        self.real = features(data.images)
        seen = features.probabilities(self.real).argmax(1)
        self.accuracy = float((seen == labels).double().mean())
        self.mass = torch.bincount(seen, minlength=len(ORDER)).double() / len(seen)
        self.some = self.real[torch.randperm(len(self.real), generator=generator)[:JUDGED]]

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """A class is found if it has a quarter of the mass that the classifier gives it in the real images."""
        found = self.features(images)
        mass = torch.bincount(self.features.probabilities(found).argmax(1), minlength=len(ORDER)) / len(found)
        rare = torch.tensor(ORDER) >= len(ORDER) // 2
        shares = prdc(self.some, found[:JUDGED])
        return {
            "fid": frechet_distance(self.real, found),
            "precision": shares["precision"],
            "recall": shares["recall"],
            "found": int((mass >= self.mass / 4).sum()),
            "total_variation": 0.5 * float((mass - self.mass).abs().sum()),
            "rare_mass": float(mass[rare].sum() / self.mass[rare].sum()),
            "mass": [round(value, 5) for value in mass.tolist()],
        }


@torch.no_grad()
def drawn(student: Denoiser, device: Device, sigma: float = 2.5) -> Tensor:
    noise = sigma * torch.randn(DRAWN, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1000))
    parts = [
        student(x.to(device.name), torch.full((len(x),), sigma, device=device.name)).cpu() for x in noise.split(500)
    ]
    return to_uint8(torch.cat(parts))


def worker(args: argparse.Namespace, keys: list[tuple[str, int]], out: Path) -> None:
    """Make `keys` one after another, while there is time."""
    device = Device("no", 1)
    data, labels = imbalanced()
    teacher, judge, longest = Denoiser.from_pretrained(args.results / "teacher", device.name), Judge(data, labels), 0.0
    for rival, seed in keys:
        began = time.time()
        if began + longest > args.deadline:
            break
        student = distilled(teacher, data, rival, seed, device)
        trained = time.time()
        row = {"rival": rival, "rate": RATE, "seed": seed, **judge(drawn(student, device))}
        row |= {"device": device.name.type, "seconds": round(trained - began, 1)}
        with out.open("a") as file:
            print(json.dumps(row), file=file)
        longest = max(longest, time.time() - began)


def spread(args: argparse.Namespace, keys: list[tuple[str, int]]) -> None:
    """Divide what is missing among `--jobs` processes, each with one thread."""
    done = {(row["rival"], row["seed"]) for row in results(args.results)}
    keys = [key for key in keys if key not in done]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = []
    for job in range(min(args.jobs, len(keys))):
        out = args.results / f"run-{os.getpid()}-{job}.jsonl"
        words = ["--keys", json.dumps(keys[job :: args.jobs]), "--out", str(out), "--deadline", str(args.deadline)]
        command = [sys.executable, __file__, "worker", "--results", str(args.results), "--device", args.device, *words]
        started.append(subprocess.Popen(command, env=environment))
    if any(process.wait() for process in started):
        raise SystemExit("a worker failed: its message is above")


def results(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("run-*.jsonl")) for row in read(file)]


def judge_teacher(folder: Path) -> dict[str, Any]:
    """What the judge says of the teacher, of the real images and of its own accuracy; kept beside the results."""
    file = folder / "world.json"
    if not file.exists():
        data, labels = imbalanced()
        judge, device = Judge(data, labels), Device("no", 1)
        teacher = Denoiser.from_pretrained(folder / "teacher", device.name)
        teacher_images = generate(teacher, num_images=DRAWN, seed=1000, steps=10, sampler="dpm_solver")
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(1))
        world = {
            "teacher": judge(torch.cat([images for images, _ in teacher_images])),
            "start": judge(drawn(teacher, device)),
            "real": judge(data.images[order[:DRAWN]]),
            "accuracy": judge.accuracy,
            "mass": [round(value, 5) for value in judge.mass.tolist()],
            "counts": class_counts(),
        }
        file.write_text(json.dumps(world, indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def table(folder: Path) -> None:
    protocol = {
        "images": f"{SIZE}x{SIZE}", "updates": STEPS, "batch": BATCH, "drawn": DRAWN, "rate": RATE,
        "seeds": SEEDS, "order": ORDER, "teacher_updates": TEACHER_STEPS,
    }  # fmt: skip
    columns = {
        "fid": "FID", "precision": "precision", "recall": "recall", "found": "classes found",
        "total_variation": "total variation", "rare_mass": "rare mass",
    }  # fmt: skip
    write_claim("rare_classes", protocol, results(folder), [], list(RIVALS), columns, judge_teacher(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["teacher", "run", "all", "table", "worker"])
    parser.add_argument("--results", type=Path, default=Path("runs/claims/rare_classes"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--seconds-budget", type=float, default=1e9, help="no run begins that would end after it")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    args.deadline = args.deadline or time.time() + args.seconds_budget
    args.results.mkdir(parents=True, exist_ok=True)
    if args.verb == "worker":
        worker(args, [(rival, seed) for rival, seed in args.keys], args.out)
    if args.verb in ("teacher", "all") and not (args.results / "teacher").exists():
        train_teacher(args.results / "teacher")
    if args.verb in ("run", "all"):
        spread(args, [(name, seed) for seed in SEEDS for name in RIVALS])
    if args.verb == "table":
        table(args.results)


if __name__ == "__main__":
    main()
