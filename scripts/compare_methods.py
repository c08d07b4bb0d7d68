"""All methods at equal wall-clock: one-step FID, KID, precision, recall, seconds a step, peak memory, over seeds.

    python scripts/compare_methods.py --seconds 150 --seeds 0 1 2 --jobs 2 --out runs/compare --table docs/comparison

Protocol: each method's own config; all begin with the same student, the regression phase that the recipes share (run
once, `start` in the table). A timing run of a few steps, under the same load, turns the seconds of training into
steps, so that rate schedules end when the time does; then one run a seed, each a process of its own with one thread.
The student's average is measured once, at the end. Peak memory is the process's, data and evaluation included.
`TABLE.json` holds every run, `TABLE.md` the means and the standard deviations over seeds.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from diffdistill.config import load_config
from diffdistill.config.schema import Distill
from diffdistill.training.loop import flat

RECIPES = ["diff_instruct", "dmd2", "f_distill", "sid", "sida", "sim", "uni_instruct"]
VARIANTS = {
    "f_distill": ["jensen_shannon", "forward_kl"],
    "uni_instruct": ["forward_kl"],
}
TIMING_STEPS = 8


def cells(recipes: Sequence[str]) -> list[tuple[str, str]]:
    """(recipe, divergence) of every row."""
    return [(recipe, divergence) for recipe in recipes for divergence in VARIANTS.get(recipe, ["reverse_kl"])]


def distill(folder: str, recipe: str, divergence: str, out: Path, extra: Sequence[str]) -> Path:
    words = [f"{folder}/{recipe}", f"output_dir={out}", "num_threads=1", "sample_every=0", *extra]
    if recipe in VARIANTS:
        words.append(f"method.divergence={divergence}")
    if not (out / "report.html").exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (out.parent / f"{out.name}.log").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "diffdistill.cli", "distill", *words, "--quiet"],
                check=True,
                env=environment,
                stdout=log,
                stderr=log,
            )
    return out


def first_stage(folder: str, out: Path, extra: Sequence[str]) -> Path:
    """The recipes' regression phase as a run of its own."""
    regression = load_config(Distill, f"{folder}/distill", extra).config.student.regression
    assert regression is not None
    return distill(folder, "distill", "reverse_kl", out / "start", [f"max_train_steps={regression.steps}", *extra])


def seconds_per_step(run: Path) -> float:
    """From the second step to the last: the first one compiles kernels and fills caches."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "critic/loss" in row and row["step"] >= 2]
    return (rows[-1]["time"] - rows[0]["time"]) / (rows[-1]["step"] - rows[0]["step"])


def collect(run: Path, steps: int, pace: float) -> dict[str, Any]:
    evaluation = json.loads((run / "evaluation.json").read_text())["student"]
    memory = json.loads((run / "environment.json").read_text())["peak_memory_mb"]
    return {
        **flat(evaluation),
        "steps": steps,
        "seconds_per_step": pace,
        "peak_memory_mb": memory,
        "protocol": evaluation["protocol"],
    }


def markdown(rows: list[dict[str, Any]], start: dict[str, Any], seconds: int, overrides: Sequence[str]) -> str:
    columns = ["fid", "kid", "precision", "recall"]
    lines = [
        "| method | divergence | FID | KID x 1000 | precision | recall | steps | s / step | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["method"], row["divergence"]), []).append(row)
    for (method, divergence), runs in sorted(grouped.items(), key=lambda item: mean(r["fid"] for r in item[1])):
        texts = []
        for name in columns:
            scale = 1000 if name == "kid" else 1
            values = [scale * run[name] for run in runs]
            texts.append(f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}")
        pace, memory = mean(r["seconds_per_step"] for r in runs), max(r["peak_memory_mb"] for r in runs)
        lines.append(
            f"| {method} | {divergence} | {' | '.join(texts)} | {runs[0]['steps']} | {pace:.2f} | {memory:.0f} |"
        )
    values = [f"{(1000 if name == 'kid' else 1) * start[name]:.3f}" for name in columns]
    lines.append(f"| start (regression) | | {' | '.join(values)} | {start['steps']} | | |")
    protocol = rows[0]["protocol"]
    lines.append(
        f"\n{seconds} seconds of training on one thread; {len(next(iter(grouped.values())))} seeds, mean ± "
        f"standard deviation; "
        f"{protocol['num_images']} images, classes balanced, against {protocol['reference']['name']} "
        f"({protocol['reference']['num_images']} images), features {protocol['features']['id']} "
        f"{protocol['features']['sha256'][:12]}. For all: {' '.join(overrides) or 'the recipes as they are'}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="fashion_mnist", help="folder of configs/ whose recipes are compared")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, help="of that folder")
    parser.add_argument("--seconds", type=int, default=150, help="of training, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument(
        "--table", type=Path, default=Path("docs/comparison"), help="without ending; .json and .md are written"
    )
    parser.add_argument("overrides", nargs="*", help="key=value for every run, such as data.path=...")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    rivals = cells(args.recipes)
    start = first_stage(args.configs, args.out, args.overrides)
    begin = [f"initialize_from={start}", "student.regression=null"]

    def timed(cell: tuple[str, str]) -> float:
        quick = [f"max_train_steps={TIMING_STEPS}", "log_every=1", "evaluation.at_end=false", *begin, *args.overrides]
        return seconds_per_step(distill(args.configs, *cell, args.out / f"timing-{cell[0]}-{cell[1]}", quick))

    def trained(job: tuple[tuple[str, str], int, float]) -> dict[str, Any]:
        cell, seed, pace = job
        steps = round(args.seconds / pace)
        out = args.out / f"{cell[0]}-{cell[1]}-{seed}"
        distill(args.configs, *cell, out, [f"max_train_steps={steps}", f"seed={seed}", *begin, *args.overrides])
        row = {"method": cell[0], "divergence": cell[1], "seed": seed, **collect(out, steps, pace)}
        print(json.dumps({k: v for k, v in row.items() if k != "protocol"}), flush=True)
        return row

    with ThreadPoolExecutor(args.jobs) as pool:
        paces = dict(zip(rivals, pool.map(timed, rivals), strict=True))
        # Seed by seed, so that an interrupted comparison has every method.
        rows = list(pool.map(trained, [(cell, seed, paces[cell]) for seed in args.seeds for cell in rivals]))
    stage = json.loads((start / "metrics.jsonl").read_text().splitlines()[-1])
    began = {**flat(json.loads((start / "evaluation.json").read_text())["student"]), "steps": stage["step"]}
    table = markdown(rows, began, args.seconds, args.overrides)
    args.table.with_suffix(".json").write_text(json.dumps({"start": began, "runs": rows}, indent=1) + "\n")
    args.table.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
