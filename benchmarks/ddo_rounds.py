"""What rounds of DDO do to the bundled teacher, and what of it its one-step student keeps.

    python benchmarks/ddo_rounds.py --out runs/ddo_rounds               seeds 0, 1, 2: two hours of one thread
    python benchmarks/ddo_rounds.py --out runs/ddo_rounds --students    and their students: 25 minutes each

A round is `diffdistill train fashion_mnist/ddo` of `--steps` updates at batch 32, begun as the model of the round
before. Beside the first stands as much plain denoising from the teacher. A model is measured by FID, precision and
recall of class-balanced images of seed 1000: 5,000 with 10 evaluations (DPM-Solver++), 2,000 with 35 (Heun). A round
ends with the best of four models, by 500 images of another seed with 19 evaluations. A student is
`fashion_mnist/quickstart` at its length without AMX, of the last round's model and, as its control, of the bundled
teacher. A figure that exists is not made again.
"""

import argparse
import json
from pathlib import Path

from seed_table import seed_table

from diffdistill.cli import main as diffdistill
from diffdistill.config.loader import given_in
from diffdistill.evaluation.figures import numbers_of

TEACHER = "builtin:fashion_mnist_teacher"
DATA = "builtin:fashion_mnist"
PROTOCOLS = {
    "10": ["--sampler", "dpm_solver", "--steps", "10", "--num-images", "5000"],
    "35": ["--sampler", "heun", "--steps", "18", "--num-images", "2000"],
    "1": ["--num-images", "5000"],
}
RATE = 1e-5  # of the first round; a fifth in each that follows, for at the same rate the second made all worse
FIGURES = ("fid", "precision", "recall")
STUDENT = ["student.regression.steps=1400", "max_train_steps=1560", "num_threads=1", "mixed_precision=no"]


def run(*words: str) -> None:
    print("$ diffdistill " + " ".join(words), flush=True)
    code = diffdistill(words)
    if code:
        raise SystemExit(code)


def trained(folder: Path, *words: str) -> str:
    """The model of a run, which is made or gone on with where it is not finished."""
    model = folder / ("student" if words[0] == "distill" else "model")
    if not model.exists():
        run(*words, f"output_dir={folder}", "resume_from_checkpoint=latest")
    return str(model)


def measured(model: str, evaluations: str, file: Path) -> dict[str, float]:
    """FID, precision and recall of a model by one of the protocols, kept in `file`."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        words = [*PROTOCOLS[evaluations], "--metrics", "fid,prdc", "--seed", "1000", "--batch-size", "250"]
        run("evaluate", "--model", model, "--reference", DATA, *words, "--json", str(file), "--quiet")
    numbers = numbers_of(json.loads(file.read_text()))
    return {name: numbers[name] for name in FIGURES}


class Seed:
    """The models of one training seed, and their figures, in a folder."""

    def __init__(self, out: Path, seed: int, steps: int):
        self.folder, self.seed, self.steps = out / f"seed{seed}", seed, steps

    def figures(self, name: str, model: str, evaluations: str) -> dict[str, float]:
        return measured(model, evaluations, self.folder / "figures" / f"{name}-{evaluations}.json")

    def round(self, number: int, start: str) -> str:
        choice = ["evaluation.num_images=500", "evaluation.steps=10", f"evaluation.every={max(1, self.steps // 4)}"]
        length = [f"objective.round_steps={self.steps}", f"max_train_steps={self.steps}"]
        words = [f"seed={self.seed}", f"initialize_from={start}", "objective.reference_images=2048"]
        words += ["train_batch_size=32", "ema_decay=0.95", "sample_every=0", *length, *choice]
        words += [f"optimizer.learning_rate={RATE / 5 ** (number - 1)}"]
        return trained(self.folder / f"round{number}", "train", "fashion_mnist/ddo", *words)

    def denoising(self) -> str:
        """The settings of a round, with the teacher's own objective."""
        file = self.folder / "denoising.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        changed = {"objective": {"name": "denoising"}, "evaluation": {"every": 0, "num_images": 2}}
        file.write_text(json.dumps(given_in("fashion_mnist/ddo") | changed))  # JSON is YAML
        words = [f"seed={self.seed}", f"max_train_steps={self.steps}", "train_batch_size=32", "ema_decay=0.95"]
        return trained(self.folder / "denoising", "train", str(file), "sample_every=0", *words)

    def student(self, name: str, teacher: str) -> str:
        words = [f"seed={self.seed}", f"teacher={teacher}", "sample_every=0", *STUDENT]
        return trained(self.folder / f"student_of_{name}", "distill", "fashion_mnist/quickstart", *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="runs and figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of DDO (default: 2)")
    parser.add_argument("--steps", type=int, default=200, help="updates of a round (default: 200)")
    parser.add_argument("--evaluations", nargs="+", default=["10", "35"], choices=["10", "35"], help="protocols")
    parser.add_argument("--students", action="store_true", help="distil the last round's models and the teacher too")
    args = parser.parse_args()
    rows: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for evaluations in args.evaluations:
        file = args.out / "figures" / f"teacher-{evaluations}.json"
        rows["teacher", evaluations] = [measured(TEACHER, evaluations, file)]
    for seed in args.seeds:
        one = Seed(args.out, seed, args.steps)
        models, model = {"denoising": one.denoising()}, TEACHER
        for number in range(1, args.rounds + 1):
            model = models[f"DDO, round {number}"] = one.round(number, model)
        for name, each in models.items():
            for evaluations in args.evaluations:
                rows.setdefault((name, evaluations), []).append(one.figures(name, each, evaluations))
        if args.students:
            for name, teacher in (("teacher", TEACHER), ("last_round", model)):
                student = one.student(name, teacher)
                label = f"student of {name.replace('_', ' ')}"
                rows.setdefault((label, "1"), []).append(one.figures(f"student_of_{name}", student, "1"))
        print(seed_table(("model", "evaluations"), rows, FIGURES), flush=True)


if __name__ == "__main__":
    main()
