"""Why no window of Time-Shift (2305.15583) helps F-PNDM at 10 steps: the method, the model or the code?

    python benchmarks/claims/time_shift.py builtin:fashion_mnist_teacher --out runs/claims/time_shift
    python benchmarks/claims/time_shift.py builtin:fashion_mnist_teacher --out runs/claims/time_shift --report

Code: both samplers are written again from the papers in `time_shift_referee.py`, and their images are compared with
the package's own, image by image, from the same noise.
Model: everything is done a second time with an exact denoiser, that of `--exact` training images, which has no error.
Method: what the statistic says of true states, which are at their scheduled level by construction; FID with the same
offset for all labels, the best that any choice could do on average; and the rule's other readings.

`OUT/results.jsonl` holds a row a cell and seed; a run that was stopped goes on where it was. FID as in
docs/samplers.md: bundled features, 300 images a seed.
"""

import argparse
import functools
import itertools
import json
import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from report import read
from time_shift_referee import CUTOFF, STEPS, TIME, Epsilon, Rule, Table, choose, solve
from torch import Tensor

from diffdistill.data import load_images, to_model_range
from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import Evaluator
from diffdistill.parts.exposure_bias.corrections import Corrections
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.plan import plan_sampling
from diffdistill.sampling.scheduled import betas_of
from diffdistill.schedulers import level_statistic

# The most telling first: these many are measured over all seeds before the rest.
TELLING = 6
RULES = {
    "plain": Rule(),
    "relabel, corrected, 50": Rule("relabel"),
    "relabel, paper, 50": Rule("relabel", "paper"),
    "all by +10": Rule("offset", offset=10),
    "all by -10": Rule("offset", offset=-10),
    "destination, corrected, 50": Rule("destination"),
    "destination, paper, 50": Rule("destination", "paper"),
    "relabel, own contrast, 50": Rule("relabel", "own"),
    "relabel, batch mean, 50": Rule("relabel", "batch"),
    "all by +20": Rule("offset", offset=20),
    "all by -20": Rule("offset", offset=-20),
    "relabel, corrected, 20": Rule("relabel", window=20),
    "network only, corrected, 50": Rule("network"),
}
FPNDM_ONLY = {
    "relabel, corrected, 50, weights of the times": Rule("relabel", weights="true"),
    "relabel, corrected, 50, from the start": Rule("relabel"),
}
FIRST = {"vp_ddim": 1, "fpndm": 4}  # the package moves F-PNDM's labels once the multistep formula runs


# ---- the two denoisers


def network_noise(model: Denoiser, table: Table, labels: Tensor, first: int) -> Epsilon:
    def eps(x: Tensor, t: Tensor) -> Tensor:
        alpha, s = table(t)
        sigma = (s / alpha).flatten().float()
        x_in = (x / alpha).float()
        # In parts of 16, as the package samples on a CPU.
        parts = zip(x_in.split(16), sigma.split(16), labels[first : first + len(x)].split(16), strict=True)
        x0 = torch.cat([model(a, b, c) for a, b, c in parts])
        return ((x - alpha * x0) / s).float()

    return eps


def exact_noise(data: Tensor, table: Table) -> Epsilon:
    """E[eps | x] for data that are exactly these images, equally likely: a softmax over distances."""
    flat = data.flatten(1)
    squares = flat.square().sum(1)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        alpha, s = table(t)
        y, sigma = (x / alpha).float().flatten(1), (s / alpha).flatten().float()
        weight = ((y @ flat.T - squares / 2) / sigma[:, None] ** 2).softmax(1)
        return ((x - alpha * (weight @ flat).reshape(x.shape)) / s).float()

    return eps


# ---- what is measured


@dataclass
class World:
    """A denoiser and what its samplers are judged with."""

    name: str
    table: Table
    epsilon: Callable[[int], Epsilon]  # of the batch that begins at an index
    shape: tuple[int, int, int]
    contrast: float
    evaluator: Evaluator
    drawn: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)  # variances of plain images

    @torch.inference_mode()
    def draw(
        self, solver: str, rule: Rule, seed: int, count: int, watch: list[dict[int, Tensor]] | None = None
    ) -> Tensor:
        """x0 `(count, C, H, W)` of the images 0 to count - 1 of a seed."""
        parts = []
        for start in range(0, count, 100):
            indices = range(start, min(start + 100, count))
            noise = ImageNoise(seed, indices, self.shape).draw()
            eps = self.epsilon(start)
            contrast = torch.full((len(noise),), self.contrast, dtype=torch.float64)
            place = solver, seed, start
            if rule.target == "own":
                if place not in self.drawn:
                    plain = solve(eps, noise, self.table, solver, Rule(), contrast)
                    self.drawn[place] = plain.flatten(1).var(dim=1).double()
                contrast = self.drawn[place]
            seen: dict[int, Tensor] | None = None if watch is None else {}
            parts.append(solve(eps, noise, self.table, solver, rule, contrast, seen))
            if rule.move == "none":
                self.drawn[place] = parts[-1].flatten(1).var(dim=1).double()
            if watch is not None and seen is not None:
                watch.append(seen)
        return torch.cat(parts)

    def fid(self, x0: Tensor) -> float:
        return float(self.evaluator([(to_uint8(x0), None)])["metrics"]["fid"]["value"])


def rules_of(solver: str) -> dict[str, Rule]:
    """RULES for a solver, with the state from which the package moves its labels."""
    found = {name: replace(rule, first=FIRST[solver]) for name, rule in RULES.items()}
    if solver == "fpndm":
        found |= {name: rule if "start" in name else replace(rule, first=4) for name, rule in FPNDM_ONLY.items()}
    return found


def worlds(args: Namespace) -> tuple[Denoiser, list[World]]:
    model = Denoiser.from_pretrained(args.model).eval()
    data = load_images(args.data)
    evaluator = Evaluator(data, "fashion_mnist", ("fid",), floor=False, resamples=0)
    table = Table(betas_of(model.process))
    real = to_model_range(data.images[:: len(data.images) // args.exact][: args.exact])
    variance = float(to_model_range(data.images[:10000]).flatten(1).var(dim=1).mean())
    labels = torch.arange(args.num_images) % max(model.num_classes or 1, 1)
    exact = exact_noise(real, table)
    of_network = functools.partial(network_noise, model, table, labels)
    shape = model.image_shape
    return model, [
        World("teacher", table, of_network, shape, variance, evaluator),
        World("exact", table, lambda _: exact, shape, variance, evaluator),
    ]


def check_code(args: Namespace, model: Denoiser, world: World) -> list[dict[str, Any]]:
    """Largest difference in x0 between the package's sampler and the referee, over images; labels alike or not."""
    rows = []
    for solver in FIRST:
        for name in ("plain", "relabel, corrected, 50", "relabel, paper, 50"):
            rule = rules_of(solver)[name]
            wanted = Corrections(window=rule.window, cutoff=CUTOFF, statistic=rule.target)
            if rule.target == "corrected":
                wanted = replace(wanted, data_variance=world.contrast)
            plan = plan_sampling(model, sampler=solver, steps=STEPS)
            plan = plan if rule.move == "none" else replace(plan, corrections=wanted)
            indices = range(32)
            ours = sample_batch(model, plan, args.seeds[0], indices, 32)
            theirs = world.draw(solver, rule, args.seeds[0], 32)
            apart = (ours - theirs).abs().flatten(1).amax(1)
            rows.append({"what": "code", "solver": solver, "rule": name, "largest": float(apart.max())})
            rows[-1] |= {
                "median": float(apart.median()),
                "moved": float((theirs - world.draw(solver, Rule(), args.seeds[0], 32)).abs().max()),
            }
            print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def check_statistic(args: Namespace, world: World) -> list[dict[str, Any]]:
    """What the rule would do to states that are right, and to those of the plain samplers: the chosen time less the
    scheduled one, mean and deviation over images. Without a window but for the table's ends, and in one of 50.

    ratio: the states' variance over the expected one. fine: the noise in their finest diagonal detail (the Haar
    statistic, which sees next to nothing of the image) over that of true states.
    """
    data = load_images(args.data)
    count = min(args.num_images, len(data.images))
    x0 = to_model_range(data.images[7 :: len(data.images) // count][:count])
    noise = ImageNoise(args.seeds[0], range(count), world.shape).draw()
    states: dict[str, dict[int, Tensor]] = {"true": {}}
    for t in range(399, 1000, 100):
        alpha, s = world.table(torch.full((count,), t))
        states["true"][t] = (alpha * x0 + s * noise).float()
    for solver in FIRST:
        watch: list[dict[int, Tensor]] = []
        world.draw(solver, Rule(), args.seeds[0], count, watch)
        states[solver] = {t: torch.cat([seen[t] for seen in watch]) for t in watch[0]}
    rows = []
    contrast = torch.full((count,), world.contrast, dtype=torch.float64)
    for origin, seen in states.items():
        for t in (899, 799, 699, 599, 499, 399):
            variance = float(seen[t].flatten(1).var(dim=1).double().mean())
            abar = float(world.table.abar[t])
            row = {"what": "statistic", "world": world.name, "states": origin, "time": t}
            row["ratio"] = variance / (abar * world.contrast + 1 - abar)
            row["fine"] = level_statistic(seen[t], "haar") / level_statistic(states["true"][t], "haar")
            for name, rule in (("own", Rule(window=2 * TIME)), ("windowed", Rule())):
                shift = (choose(seen[t], world.table, rule, t, 0, contrast.long() * 0 + TIME, contrast) - t).double()
                row |= {f"{name} mean": float(shift.mean()), f"{name} deviation": float(shift.std())}
            rows.append(row)
    return rows


def measure(args: Namespace) -> None:
    """Every row that is not in `results.jsonl` yet, the most telling rules of all seeds first."""
    file = args.out / "results.jsonl"
    held = read(file)
    model, both = worlds(args)
    if not any(row["what"] == "code" for row in held):
        append(file, check_code(args, model, both[0]))
    for world in both:
        if not any(row["what"] == "statistic" and row["world"] == world.name for row in held):
            append(file, check_statistic(args, world))
    done = {(row["world"], row["solver"], row["rule"], row["seed"]) for row in held if row["what"] == "fid"}
    for late, seed in itertools.product((False, True), args.seeds):
        for world, solver in itertools.product(reversed(both), reversed(FIRST)):
            for place, (name, rule) in enumerate(rules_of(solver).items()):
                if (world.name, solver, name, seed) not in done and (place >= TELLING) == late:
                    fid = world.fid(world.draw(solver, rule, seed, args.num_images))
                    row = {"what": "fid", "world": world.name, "solver": solver, "rule": name, "seed": seed}
                    append(file, [row | {"fid": fid, "settings": asdict(rule), "num_images": args.num_images}])
                    print(world.name, solver, name, seed, round(fid, 3), flush=True)


def append(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def report(args: Namespace) -> None:
    """Three tables in markdown."""
    held = read(args.out / "results.jsonl")
    print(
        "\n| sampler | rule | x0, largest difference | median over images | what the rule itself moves |\n|"
        + "---|" * 5
    )
    for row in held:
        if row["what"] == "code":
            found = f"{row['largest']:.1e} | {row['median']:.1e} | {row['moved']:.2f}"
            print(f"| {row['solver']} | {row['rule']} | {found} |")
    titles = (
        "denoiser",
        "states",
        "time",
        "variance / expected",
        "fine noise / true",
        "chosen - scheduled",
        "windowed",
    )
    print(f"\n| {' | '.join(titles)} |\n|" + "---|" * len(titles))
    for row in held:
        if row["what"] == "statistic":
            cells = [row["world"], row["states"], str(row["time"]), f"{row['ratio']:.3f}", f"{row['fine']:.3f}"]
            cells += [f"{row[f'{name} mean']:+.0f} ± {row[f'{name} deviation']:.0f}" for name in ("own", "windowed")]
            print(f"| {' | '.join(cells)} |")
    fids = {(r["world"], r["solver"], r["rule"], r["seed"]): r["fid"] for r in held if r["what"] == "fid"}
    columns = [(world, solver) for world in ("teacher", "exact") for solver in FIRST]
    print(
        f"\n| rule | {' | '.join(f'{world}, {solver}' for world, solver in columns)} |\n|---|" + "---|" * len(columns)
    )
    for name in rules_of("fpndm"):
        cells = []
        for column in columns:
            seeds = [seed for seed in args.seeds if (*column, name, seed) in fids]
            paired = [fids[*column, name, s] - fids[*column, "plain", s] for s in seeds]
            cell = spread([fids[*column, name, s] for s in seeds]) if seeds else ""
            cells.append(
                cell
                + (
                    f"<br>{'+' if statistics.mean(paired) > 0 else ''}{spread(paired)}"
                    if seeds and name != "plain"
                    else ""
                )
            )
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="builtin:fashion_mnist")
    parser.add_argument("--num-images", type=int, default=300)
    parser.add_argument("--exact", type=int, default=3000, help="images of the exact denoiser")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 1001, 1002])
    parser.add_argument("--report", action="store_true", help="measure nothing, print what there is")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        measure(args)
    report(args)


if __name__ == "__main__":
    main()
