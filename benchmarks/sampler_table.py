"""FID against steps for six samplers: plain, Epsilon Scaling, Time-Shift, both; and the paper's way to find b.

    python benchmarks/sampler_table.py builtin:fashion_mnist_teacher --out runs/samplers
    python benchmarks/sampler_table.py builtin:fashion_mnist_teacher --out runs/samplers --report

The corrections are fitted by `calibrate` on noise of its own seed and measured on other seeds; at the steps that
`--fitted` leaves out (50) they are carried over by its transfer rule. All results go row by row into `--out`
(`results.jsonl`, `calibration.json`, `calibration_fid.json`), and a run that was stopped goes on where it was.
`--report` prints the markdown table of what is there and draws `fid_against_steps.png`.

Cost: with the defaults about 2.9 million evaluations of the network, three hours on one quiet core; the rows of 10, 5
and 20 steps come first and take half of it. `--steps 10 --num-images 200 --calibration-images 128` is done in half an
hour.
"""

import argparse
import json
import statistics
import time
from argparse import Namespace
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffdistill.data import load_images
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import Evaluator
from diffdistill.parts.exposure_bias.calibration import command
from diffdistill.parts.exposure_bias.calibration.fit import FRACTIONS, SHIFTS, TIME
from diffdistill.parts.exposure_bias.corrections import BOTH, NONE, SCALE, SHIFT, Corrections, read_calibration
from diffdistill.sampling.generate import run_plan
from diffdistill.sampling.plan import plan_sampling

SAMPLERS = {
    "euler": "Euler",
    "vp_ddim": "DDIM",
    "vp_ddpm": "DDPM",
    "fpndm": "F-PNDM",
    "dpm_solver": "DPM-Solver++",
    "heun": "Heun",
}
PLAIN, SEARCH = "plain", "fid_search"
VARIANTS = {PLAIN: "plain", SCALE: "Epsilon Scaling", SHIFT: "Time-Shift", BOTH: "both", SEARCH: "b by FID search"}
SEARCHED = {("euler", 10), ("vp_ddim", 10), ("euler", 5), ("vp_ddim", 5)}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="builtin:fashion_mnist")
    parser.add_argument("--num-images", type=int, default=300)
    parser.add_argument("--calibration-images", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 1001, 1002])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 5, 20, 50])
    parser.add_argument("--fitted", type=int, nargs="*", default=[10, 5, 20], help="steps to fit")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--report", action="store_true", help="measure nothing, print what there is")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        measure(args)
    report(args)


def measure(args: Namespace) -> None:
    """Every row that is not in `results.jsonl` yet, coarse steps first."""
    model = Denoiser.from_pretrained(args.model)
    evaluator = Evaluator(load_images(args.data), "fashion_mnist", ("fid",), floor=False, resamples=0)
    held = rows(args)
    done = {(row["sampler"], row["steps"], row["variant"], row["seed"]) for row in held}
    for steps in args.steps:
        for sampler in args.samplers:
            chosen = {PLAIN: NONE} | corrections(args, sampler, steps)
            same = [row for row in held if (row["sampler"], row["steps"]) == (sampler, steps)]
            values = {(wanted_of(row["corrections"] or {}), row["seed"]): float(row["fid"]) for row in same}
            for variant, wanted in chosen.items():
                for seed in args.seeds:
                    if (sampler, steps, variant, seed) in done:
                        continue
                    begin = time.perf_counter()
                    plan = replace(plan_sampling(model, sampler=sampler, steps=steps), corrections=wanted)
                    if (wanted, seed) not in values:  # a correction that was not chosen is the plain sampler
                        batches = run_plan(model, plan, num_images=args.num_images, seed=seed, batch_size=100)
                        values[wanted, seed] = float(evaluator(batches)["metrics"]["fid"]["value"])
                    row = {"sampler": sampler, "steps": steps, "variant": variant, "seed": seed}
                    row |= {"fid": values[wanted, seed], "num_images": args.num_images}
                    row |= {"evaluations": plan.evaluations, "corrections": wanted.record()}
                    row |= {"seconds": round(time.perf_counter() - begin, 1)}
                    with (args.out / "results.jsonl").open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(sampler, steps, variant, seed, round(row["fid"], 3), f"{row['seconds']} s", flush=True)


def wanted_of(fit: dict[str, Any]) -> Corrections:
    """A fit that corrects nothing is the plain sampler, whatever else it says."""
    found = Corrections(**fit)
    return NONE if found.record() is None else found


def corrections(args: Namespace, sampler: str, steps: int) -> dict[str, Corrections]:
    """What `calibrate` finds for a sampler, fitted now unless it is in the file already or is carried over."""
    file = args.out / "calibration.json"
    if steps in args.fitted:
        calibrate(args, file, sampler, steps, "variance")
    held = read_calibration(file)
    found = {name: wanted_of(held.lookup(sampler, steps, name)) for name in (SCALE, SHIFT, BOTH)}
    if (sampler, steps) in SEARCHED:
        file = args.out / "calibration_fid.json"
        calibrate(args, file, sampler, steps, "fid")
        found[SEARCH] = wanted_of(read_calibration(file).lookup(sampler, steps, SCALE))
    return found


def calibrate(args: Namespace, file: Path, sampler: str, steps: int, method: str) -> None:
    """`diffdistill calibrate` for one sampler and number of steps."""
    settings = {"model": args.model, "data": args.data, "split": "train", "out": str(file), "features": None}
    settings |= {"sampler": (sampler,), "steps": (steps,), "num_images": args.calibration_images, "seed": 987654321}
    settings |= {"method": method, "metric": "fid", "check_seeds": 0, "batch_size": 64, "device": None}
    command.run(Namespace(**settings))


def rows(args: Namespace) -> list[Row]:
    file = args.out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(args: Namespace) -> None:
    """The markdown table and the plot of the rows there are."""
    table: dict[tuple[str, int], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows(args):
        table[row["sampler"], row["steps"]][row["variant"]][row["seed"]] = row
    print("| sampler | steps | calls | " + " | ".join(VARIANTS.values()) + " |")
    print("|---|---|---|" + "---|" * len(VARIANTS))
    for sampler, title in SAMPLERS.items():
        for steps in sorted(steps for name, steps in table if name == sampler):
            found = table[sampler, steps]
            cells = [cell(found, variant) for variant in VARIANTS]
            calls = next(iter(found[PLAIN].values()))["evaluations"]
            print(f"| {title} | {steps} | {calls} | " + " | ".join(cells) + " |")
    plot(table, args.out / "fid_against_steps.png")
    report_fits(args)


def report_fits(args: Namespace) -> None:
    """What `calibrate` saw: the bias of the images, b* and the FID on the way there, and of each window."""
    held = read_calibration(args.out / "calibration.json")
    parts = (0.0, *FRACTIONS, 1.0)
    shifts = [f"{name} {part:g}" for name, part in SHIFTS]
    heads = ["sampler", "steps", "r", "b*", *(f"FID at {part:g}" for part in parts), *shifts]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for entry in sorted(held.entries, key=lambda e: (list(SAMPLERS).index(e.sampler), e.steps)):
        trials = {(t["b"], t["statistic"] if t["window"] else "", t["window"]): t for t in entry.report["trials"]}
        star = entry.report["variance_fit"]
        bs = [round(1 + (star["b"] - 1) * part, 6) for part in parts[:-1]] + [star["b"]]
        keys = [(b, "", 0) for b in bs] + [(1.0, name, round(part * TIME / entry.steps)) for name, part in SHIFTS]
        cells = [f"{trials[key]['quality']:.2f}" for key in keys]
        r, error = trials[1.0, "", 0]["log_ratio"], trials[1.0, "", 0]["standard_error"]
        bias = f"{r:+.3f} ± {error:.3f} | {star['b']:.4f} ± {star['standard_error']:.4f}"
        print(f"| {SAMPLERS[entry.sampler]} | {entry.steps} | {bias} | {' | '.join(cells)} |")


def cell(found: dict[str, dict[int, Row]], variant: str) -> str:
    """Mean and sample standard deviation over seeds; the same of the difference to plain, seed by seed, which share
    their noise; what was chosen. `**`: better than plain by more than the spread of the seeds, sqrt(s^2 + s'^2); `!`:
    worse by more than that.
    """
    values = {seed: row["fid"] for seed, row in found[variant].items()} if variant in found else {}
    if not values:
        return ""
    text = about(list(values.values()))
    before = {seed: row["fid"] for seed, row in found[PLAIN].items() if seed in values}
    if variant == PLAIN or not before:
        return text
    differences = [values[seed] - value for seed, value in before.items()]
    mark = ""
    if len(before) > 1:
        spread = (statistics.variance(before.values()) + statistics.variance(values.values())) ** 0.5
        mean = statistics.mean(differences)
        mark = " **" if mean < -spread else " !" if mean > spread else ""
    used = next(iter(found[variant].values()))["corrections"] or {"b": 1, "window": 0}
    knobs = [f"b {used['b']:.4g}"] if used["b"] != 1 else []
    knobs += [f"{used['statistic']} {used['window']}"] if used["window"] else []
    if not knobs:
        return "off"
    return f"{text}{mark}<br>{about(differences, '+')}<br>{', '.join(knobs)}"


def about(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{spread}"


def plot(table: dict[tuple[str, int], dict[str, dict[int, Row]]], target: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, (sampler, title) in zip(figure.subplots(2, 3).flat, SAMPLERS.items(), strict=True):
        for place, (variant, label) in enumerate(VARIANTS.items()):
            points = [
                (steps * 1.025 ** (place - 2), [row["fid"] for row in found[variant].values()])
                for (name, steps), found in sorted(table.items())
                if name == sampler and variant in found
            ]  # side by side: a correction that is off lies on plain
            if points:
                means = [statistics.mean(values) for _, values in points]
                spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
                style: Row = {"linestyle": "none"} if variant == SEARCH else {}
                axes.errorbar(
                    [at for at, _ in points], means, spreads, marker="o", markersize=4, capsize=2, linewidth=1,
                    label=label, **style,
                )  # fmt: skip
        axes.set(title=title, xscale="log", yscale="log", xlabel="steps", ylabel="FID")
        axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
