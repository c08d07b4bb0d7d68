"""All methods at equal processor time: one-step FID, KID, precision, recall, seconds a step, peak memory.

    python benchmarks/compare_methods.py --seconds 30       docs/comparison.md and .json, from held-out seeds
    python benchmarks/compare_methods.py --tuning --out runs/try1 train_batch_size=64     to choose a setting by

Held out: what is tuned is tuned on seeds 0 to 9 (`--tuning`: 0 1 2) and reported on seeds from 10 on (10 11 12).
A table of tuning seeds says so and is written to OUT, not to docs.

Protocol: each method's own config; all begin with the same student, the regression phase that the recipes share (run
once, with the first of the seeds; `start` in the table). Two timing runs of a few steps turn the seconds of training
into steps, so that rate schedules end when the time does; then one run a seed, each a process of its own with one
thread. Seconds are those that the processor worked for the process, so that a busy machine takes longer and trains no
less. The student's average is measured once, at the end. Peak memory is the process's, data and evaluation included.
`TABLE.json` holds every run; in `TABLE.md` all between the marks `compared` and `end` is written anew: means, standard
deviations over seeds, and what the figures say, counted.
"""

import argparse
import datetime
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from diffdistill.config import load_config
from diffdistill.config.schema import Distill
from diffdistill.evaluation.figures import numbers_of

RECIPES = ["diff_instruct", "dmd2", "f_distill", "sid", "sida", "sim", "uni_instruct"]
VARIANTS = {
    "f_distill": ["jensen_shannon", "forward_kl"],
    "uni_instruct": ["forward_kl"],
}
TIMING_STEPS = (3, 15)
HELD_OUT = 10  # seeds from here on are reported and choose nothing
COLUMNS = {"fid": "FID", "kid": "KID x 1000", "precision": "precision", "recall": "recall"}
BETTER = {"fid": "lower", "kid": "lower", "precision": "higher", "recall": "higher"}
MARKS = "<!-- compared -->", "<!-- end -->"
Row = dict[str, Any]


def cells(recipes: Sequence[str]) -> list[tuple[str, str]]:
    """(recipe, divergence) of every row."""
    return [(recipe, divergence) for recipe in recipes for divergence in VARIANTS.get(recipe, ["reverse_kl"])]


def distill(folder: str, recipe: str, divergence: str, out: Path, extra: Sequence[str]) -> Path:
    words = [f"{folder}/{recipe}", f"output_dir={out}", "num_threads=1", "sample_every=0", *extra]
    if recipe in VARIANTS:
        words.append(f"method.divergence={divergence}")
    used = out / "processor_seconds.json"
    if not used.exists():
        command = [sys.executable, "-m", "diffdistill", "distill", *words, "--quiet"]
        with (out.parent / f"{out.name}.log").open("w") as log:
            process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; see {log.name}")
        used.write_text(json.dumps(usage.ru_utime + usage.ru_stime))
    return out


def first_stage(folder: str, out: Path, extra: Sequence[str]) -> Path:
    """The recipes' regression phase as a run of its own."""
    regression = load_config(Distill, f"{folder}/distill", extra).config.student.regression
    assert regression is not None
    return distill(folder, "distill", "reverse_kl", out / "start", [f"max_train_steps={regression.steps}", *extra])


def processor_seconds(run: Path) -> float:
    """That the process of a run worked, all its threads together."""
    return float(json.loads((run / "processor_seconds.json").read_text()))


def seconds_per_step(short: Path, long: Path) -> float:
    """From two runs that differ in their number of steps: start, end and the first step's set-up are in both."""
    return (processor_seconds(long) - processor_seconds(short)) / (TIMING_STEPS[1] - TIMING_STEPS[0])


def collect(run: Path, steps: int, pace: float) -> Row:
    evaluation = json.loads((run / "evaluation.json").read_text())["student"]
    memory = json.loads((run / "environment.json").read_text())["peak_memory_mb"]
    return {
        **numbers_of(evaluation),
        "steps": steps,
        "seconds_per_step": pace,
        "peak_memory_mb": memory,
        "protocol": evaluation["protocol"],
    }


def grouped_by_row(rows: list[Row]) -> dict[str, list[Row]]:
    """Runs by name, lowest mean FID first; a method of one divergence goes by its own name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['method']} | {row['divergence']}", []).append(row)
    return dict(sorted(groups.items(), key=lambda item: mean(run["fid"] for run in item[1])))


def figures(runs: list[Row], column: str) -> list[float]:
    return [(1000 if column == "kid" else 1) * run[column] for run in runs]


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def table_of(groups: dict[str, list[Row]], start: Row) -> str:
    lines = [
        f"| method | divergence | {' | '.join(COLUMNS.values())} | steps | s / step | peak MB |",
        "|---|---|" + "---|" * (len(COLUMNS) + 3),
    ]
    for name, runs in groups.items():
        cells = [spread(figures(runs, column)) for column in COLUMNS]
        pace, memory = mean(run["seconds_per_step"] for run in runs), max(run["peak_memory_mb"] for run in runs)
        lines.append(f"| {name} | {' | '.join(cells)} | {runs[0]['steps']} | {pace:.2f} | {memory:.0f} |")
    cells = [spread(figures([start], column)) for column in COLUMNS]
    return "\n".join([*lines, f"| start (regression) | | {' | '.join(cells)} | {start['steps']} | | |"])


def apart(one: list[float], other: list[float]) -> bool:
    """Means farther apart than the spread of a difference, sqrt(s^2 + s'^2)."""
    return abs(mean(one) - mean(other)) > (stdev(one) ** 2 + stdev(other) ** 2) ** 0.5


def by_chance(count: int) -> float:
    """How often two rows of `count` seeds are `apart` though nothing differs, if the seeds' law is normal."""
    draws = torch.randn(100_000, 2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difference = draws.mean(2).diff(dim=1)[:, 0]
    return float((difference.square() > draws.var(dim=2).sum(1)).double().mean())


def reading(groups: dict[str, list[Row]], start: Row) -> list[str]:
    """What the table says, counted; sentences that are true whatever the figures are."""
    pairs = list(itertools.combinations(groups, 2))
    count = min(len(runs) for runs in groups.values())
    if count < 2 or not pairs:
        return ["One seed or one method has no spread, and nothing to compare with."]
    lines = [
        f"Two rows are called apart if their means differ by more than the spread of a difference, sqrt(s² + s'²). Of "
        f"{len(pairs)} pairs of rows that do not differ, {by_chance(count) * len(pairs):.1f} are apart by chance."
    ]
    for column, title in COLUMNS.items():
        values = {name: figures(runs, column) for name, runs in groups.items()}
        means = [mean(found) for found in values.values()]
        far = [pair for pair in pairs if apart(values[pair[0]], values[pair[1]])]
        begin = figures([start], column)[0]
        sign = 1 if BETTER[column] == "higher" else -1
        gained = sum(sign * (mean(found) - begin) > stdev(found) for found in values.values())
        lost = sum(sign * (begin - mean(found)) > stdev(found) for found in values.values())
        largest = max(stdev(found) for found in values.values())
        lines.append(
            f"- **{title}** ({BETTER[column]} is better): means from {min(means):.3f} to {max(means):.3f}, deviations "
            f"of the rows up to {largest:.3f}; {len(far)} of {len(pairs)} pairs are apart. By more than its own "
            f"deviation, {gained} of {len(values)} rows are better than the start and {lost} worse."
        )
    return lines


def markdown(rows: list[Row], start: Row, args: argparse.Namespace) -> str:
    groups, protocol = grouped_by_row(rows), rows[0]["protocol"]
    command = shlex.join(["python", "benchmarks/compare_methods.py", *sys.argv[1:]])
    caption = (
        f"{args.seconds} s of one thread's processor time for each run; seeds {', '.join(map(str, args.seeds))}, mean "
        f"± standard deviation; {protocol['num_images']} images, classes balanced, against "
        f"{protocol['reference']['name']} ({protocol['reference']['num_images']} images), features "
        f"{protocol['features']['id']} {protocol['features']['sha256'][:12]}. The start has seed {args.seeds[0]} and "
        f"is the same for all, so its own spread is in no row. Made on {datetime.date.today()} at {revision()} by"
    )
    kind = "**Tuning seeds: to choose by, not to report.**\n\n" if args.tuning else ""
    parts = [kind + caption, f"    {command}", table_of(groups, start), "\n".join(reading(groups, start))]
    return "\n\n".join(parts) + "\n"


def revision() -> str:
    """The commit of the working tree, and whether files that it tracks were changed since."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "..")
    return f"commit {git('rev-parse', '--short', 'HEAD') or 'unknown'}{' with changes' if changed else ''}"


def write_between(file: Path, text: str) -> None:
    """Put `text` between the marks of a page; a page that is not there yet gets nothing else."""
    begin, end = MARKS
    page = file.read_text() if file.exists() else f"{begin}\n{end}\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{file} has no marks {begin} ... {end} to write between; add them or name another table")
    file.write_text(f"{before}{begin}\n{text}{end}{after}")


def checked(args: argparse.Namespace) -> str | None:
    """Fill in what depends on `--tuning`; a sentence if the seeds are of the wrong set."""
    args.seeds = args.seeds or ([0, 1, 2] if args.tuning else [10, 11, 12])
    wrong = [seed for seed in args.seeds if (seed < HELD_OUT) != args.tuning]
    if wrong:
        allowed = f"0 to {HELD_OUT - 1}" if args.tuning else f"{HELD_OUT} and above, or give --tuning"
        return f"seed {wrong[0]} is not of this set; {'tuning' if args.tuning else 'reported'} seeds are {allowed}"
    args.table = args.table or (args.out / "comparison" if args.tuning else Path("docs/comparison"))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="fashion_mnist", help="folder of configs/ whose recipes are compared")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, help="of that folder")
    parser.add_argument("--seconds", type=int, default=30, help="of training, for each run, of processor time")
    parser.add_argument("--tuning", action="store_true", help="the seeds to choose settings by, not those to report")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 10 11 12, with --tuning 0 1 2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--table", type=Path, help="without ending; .json and .md are written [docs/comparison]")
    parser.add_argument("overrides", nargs="*", help="key=value for every run, such as data.path=...")
    args = parser.parse_args()
    problem = checked(args)
    if problem:
        parser.error(problem)
    args.out.mkdir(parents=True, exist_ok=True)

    rivals = cells(args.recipes)
    start = first_stage(args.configs, args.out, [f"seed={args.seeds[0]}", *args.overrides])
    begin = [f"initialize_from={start}", "student.regression=null"]

    def timed(cell: tuple[str, str]) -> float:
        runs = []
        for steps in TIMING_STEPS:
            quick = [f"max_train_steps={steps}", "evaluation.at_end=false", *args.overrides, *begin]
            runs.append(distill(args.configs, *cell, args.out / f"timing-{cell[0]}-{cell[1]}-{steps}", quick))
        return seconds_per_step(*runs)

    def trained(job: tuple[tuple[str, str], int, float]) -> Row:
        cell, seed, pace = job
        steps = round(args.seconds / pace)
        out = args.out / f"{cell[0]}-{cell[1]}-{seed}"
        distill(args.configs, *cell, out, [f"max_train_steps={steps}", f"seed={seed}", *args.overrides, *begin])
        row = {"method": cell[0], "divergence": cell[1], "seed": seed, **collect(out, steps, pace)}
        print(json.dumps({k: v for k, v in row.items() if k != "protocol"}), flush=True)
        return row

    with ThreadPoolExecutor(args.jobs) as pool:
        paces = dict(zip(rivals, pool.map(timed, rivals), strict=True))
        # Seed by seed, so that an interrupted comparison has every method.
        rows = list(pool.map(trained, [(cell, seed, paces[cell]) for seed in args.seeds for cell in rivals]))
    stage = json.loads((start / "metrics.jsonl").read_text().splitlines()[-1])
    began = {**numbers_of(json.loads((start / "evaluation.json").read_text())["student"]), "steps": stage["step"]}
    table = markdown(rows, began, args)
    args.table.with_suffix(".json").write_text(json.dumps({"start": began, "runs": rows}, indent=1) + "\n")
    write_between(args.table.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
