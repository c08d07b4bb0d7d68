"""Consistency models beside the bundled recipes, at about equal processor time and over seeds.

    python benchmarks/consistency_minutes.py --out runs/minutes                 three minutes of one thread each
    python benchmarks/consistency_minutes.py --out runs/minutes --minutes 12    lengths of about the quickstart's

Each row is a one-step student of the bundled teacher by the settings of `fashion_mnist/{quickstart,consistency,scm,
ict}`, with lengths in proportion to `--minutes`, measured by `diffdistill evaluate`: 5,000 class-balanced images of
seed 1000. The processor seconds are those of the whole run: pairs, start, matching, and what a run begins and ends
with. A run that exists is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from seed_table import seed_table

from diffdistill.evaluation.figures import numbers_of

FIGURES = ("fid", "precision", "recall")
ALONE = [
    "num_threads=1",
    "sample_every=0",
    "mixed_precision=no",
    "evaluation.num_images=2",
    "evaluation.metrics=[fid]",
]
MUON = "muon: {learning_rate: 6.0e-3}, objective: {name: consistency, intervals: [20, 80], mean: -0.4, std: 2.0}"
Words = Callable[[float], list[str]]  # of a length, 1 for three minutes


def count(length: float) -> int:
    return max(1, round(length))


def after_regression(each: float, *words: str) -> Words:
    """The quickstart: pairs, regression, then `each` updates of SiDA, with what else the words say."""

    def of(length: float) -> list[str]:
        steps, pairs = count(250 * length), 32 * count(36 * length)
        start = [f"student.regression.steps={steps}", f"student.regression.pairs={pairs}"]
        return [
            "distill",
            "fashion_mnist/quickstart",
            *start,
            f"max_train_steps={steps + count(each * length)}",
            *words,
        ]

    return of


def by_consistency(steps: float, matching: float) -> Words:
    """A start by consistency distillation (Muon), and `matching` updates of SiDA after it."""

    def of(length: float) -> list[str]:
        start = f"student.consistency={{steps: {count(steps * length)}, {MUON}}}"
        length_of_all = count(steps * length) + (count(matching * length) if matching else 0)
        words = ["student.sigma_init=20.0", "student.regression=null", start, f"max_train_steps={length_of_all}"]
        return ["distill", "fashion_mnist/quickstart", *words]

    return of


def of_recipe(verb: str, name: str, steps: float) -> Words:
    return lambda length: [verb, f"fashion_mnist/{name}", f"max_train_steps={count(steps * length)}"]


ROWS: dict[str, Words] = {
    "regression, then SiDA": after_regression(56),
    "the same, sCM beside SiDA": after_regression(
        36, "method.consistency={weight: 0.1, objective: {name: scm, mean: 0.0, std: 1.8}}"
    ),
    "CD, then SiDA": by_consistency(200, 56),
    "CD (Muon)": by_consistency(300, 0),
    "CD (AdamW)": of_recipe("distill", "consistency", 300),
    "sCM": of_recipe("distill", "scm", 300),
    "iCT": of_recipe("train", "ict", 400),
}


def made(folder: Path, words: list[str], seed: int) -> float:
    """Processor seconds of a run, which is made where it is not there."""
    file = folder.with_suffix(".seconds.json")
    if not file.exists():
        before = os.times()
        command = [sys.executable, "-m", "diffdistill", *words, *ALONE, f"seed={seed}", f"output_dir={folder}"]
        with folder.with_suffix(".log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        after = os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        file.write_text(json.dumps({"command": command, "seconds": seconds}))
    return json.loads(file.read_text())["seconds"]


def measured(folder: Path) -> dict[str, float]:
    file = folder.with_suffix(".figures.json")
    if not file.exists():
        model = next(path for path in (folder / "student", folder / "model") if path.exists())
        words = ["--metrics", "fid,prdc", "--num-images", "5000", "--seed", "1000", "--batch-size", "250", "--quiet"]
        words += ["--model", str(model), "--reference", "builtin:fashion_mnist", "--json", str(file)]
        subprocess.run(
            [sys.executable, "-m", "diffdistill", "evaluate", *words], check=True, stdout=subprocess.DEVNULL
        )
    numbers = numbers_of(json.loads(file.read_text()))
    return {name: numbers[name] for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="runs and figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--minutes", type=float, default=3.0, help="about what a run costs (default: 3)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for seed in args.seeds:
        for name in args.rows:
            folder = args.out / f"{'-'.join(name.replace(',', '').split())}-{seed}"
            seconds = made(folder, ROWS[name](args.minutes / 3), seed)
            rows.setdefault((name,), []).append({"seconds": seconds, **measured(folder)})
        print(seed_table(("student",), rows, ("seconds", *FIGURES)), flush=True)


if __name__ == "__main__":
    main()
