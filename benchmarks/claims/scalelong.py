"""ScaleLong's claim (2310.13545): where training of a deep network with long skips is unstable, scaled skips keep it.

    python benchmarks/claims/scalelong.py scan --jobs 2     rates at which the plain network fails, on seeds 0 and 1
    python benchmarks/claims/scalelong.py run --jobs 2      all variants at the rates the scan names, on seeds 10 to 14
    python benchmarks/claims/scalelong.py table             both tables

A U-ViT of depth 24 learns to denoise Fashion-MNIST at 8x8 by the package's own loss with Adam, without warm-up,
decay, clipping or weight decay, so that nothing but the scaling keeps it. Variants of a seed share initial weights,
images and noise. The scan raises the rate by sqrt(2) from `--from` until every one of its runs has failed; `run` takes
the lowest rate where one failed, the rate below it and the rate above it. A run is described by

    failed      a loss that is not finite, or, after the last update, no better than that of the best network that
                ignores its input (F = a constant image; 256 test images, fixed noise)
    spikes      updates whose loss is above 1.5 times the median of the 20 before
    loss        on those 256 test images, over the runs that did not fail, and over all that are finite
    swing       mean change of a decoder block's rms output per 4 updates, on a fixed batch, over its mean rms
    features    largest rms of a decoder block's output in the run, over that at the start; in the table its log10
    gradient    mean norm over the updates; and the largest, over the median

`OUT/results.jsonl` holds a line a run; what is there is not run again.
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev

import torch
from report import Row, read
from scalelong_oscillation import BATCH, deep_uvit, gradient_norm, noised, rms_of_decoder
from scalelong_oscillation import VARIANTS as OSCILLATION_VARIANTS
from torch import Tensor

from diffdistill.data import load_images
from diffdistill.denoiser import Denoiser
from diffdistill.losses import denoising_loss
from diffdistill.process import EDM, per_sample

VARIANTS = OSCILLATION_VARIANTS | {"ls": {"mode": "ls", "start": "reference"}}
PATCH = 4
SCAN_SEEDS, SEEDS = (0, 1), (10, 11, 12, 13, 14)


def blind_loss(x0: Tensor, sigma: Tensor, x_t: Tensor, data: float) -> float:
    """Loss of the best F that is one image for all inputs: the variance of F's target over inputs."""
    s = per_sample(sigma, x0)
    total = s**2 + data**2
    target = (x0 - data**2 / total * x_t) * total.sqrt() / (s * data)
    return float(target.var(dim=0, correction=0).mean())


def train(job: tuple[str, float, int, int, int]) -> Row:
    """One run: `(variant, rate, seed, depth, updates)`."""
    variant, rate, seed, depth, updates = job
    torch.set_num_threads(1)
    images = load_images("builtin:fashion_mnist", split="train", image_size=8, limit=5000).images
    test = load_images("builtin:fashion_mnist", split="test", image_size=8, limit=2000).images
    model = Denoiser(deep_uvit(depth, PATCH, seed, VARIANTS[variant]), EDM()).train()
    data = EDM().sigma_data
    optimizer = torch.optim.Adam(model.network.parameters(), lr=rate, fused=True)
    x0_test, sigma_test, x_test = noised(test, 10**6, 0, 256)
    probe = x_test[:BATCH], sigma_test[:BATCH]
    track, norms, losses = [rms_of_decoder(model, *probe)], [], []
    for step in range(updates):
        x0, sigma, x_t = noised(images, step, seed)
        loss = denoising_loss(model(x_t, sigma), x0, sigma, data).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(gradient_norm(model.network))
        if not math.isfinite(losses[-1] + norms[-1]):
            break
        optimizer.step()
        if step % 4 == 3:
            track.append(rms_of_decoder(model, *probe))
    with torch.no_grad():
        final = float(denoising_loss(model(x_test, sigma_test), x0_test, sigma_test, data).mean())
    row = {"variant": variant, "rate": rate, "seed": seed, "depth": depth, "updates": updates}
    return row | describe(losses, norms, torch.tensor(track, dtype=torch.float64), final) | {
        "blind": blind_loss(x0_test, sigma_test, x_test, data),
        "losses": [round(value, 4) for value in losses],
    }  # fmt: skip


def describe(losses: Sequence[float], norms: Sequence[float], track: Tensor, final: float) -> Row:
    spikes = sum(value > 1.5 * median(losses[i : i + 20]) for i, value in enumerate(losses[20:]))
    finite = math.isfinite(losses[-1] + norms[-1] + final)
    return {
        "finite": finite,
        "loss": final if finite else None,
        "spikes": spikes,
        "swing": float((track.diff(dim=0).abs().mean(0) / track.mean(0)).mean()) if finite else None,
        "features": float((track.amax(0) / track[0]).max()) if finite else None,
        "gradient": mean(norms) if finite else None,
        "gradient peak": max(norms) / median(norms) if finite else None,
    }


def failed(row: Row) -> bool:
    return not row["finite"] or row["loss"] >= row["blind"]


# ---- which runs


def make(jobs: list[tuple[str, float, int, int, int]], args: argparse.Namespace) -> None:
    """Every run that is not in the results, one line each as it ends."""
    file = args.out / "results.jsonl"
    have = {(row["variant"], row["rate"], row["seed"], row["depth"], row["updates"]) for row in read(file)}
    wanted = [job for job in jobs if job not in have]
    with ProcessPoolExecutor(args.jobs) as pool, file.open("a") as out:
        for row in pool.map(train, wanted):
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(
                row["variant"], row["rate"], row["seed"], "failed" if failed(row) else f"{row['loss']:.3f}", flush=True
            )


def scan(args: argparse.Namespace) -> None:
    for k in range(20):
        rate = round(args.lowest * 2 ** (k / 2), 4)
        make([("none", rate, seed, args.depth, args.updates) for seed in SCAN_SEEDS], args)
        if all(failed(row) for row in scanned(args) if row["rate"] == rate):
            return


def scanned(args: argparse.Namespace) -> list[Row]:
    rows = read(args.out / "results.jsonl")
    return [
        row
        for row in rows
        if row["seed"] in SCAN_SEEDS
        and row["variant"] == "none"
        and (row["depth"], row["updates"]) == (args.depth, args.updates)
    ]


def rates(args: argparse.Namespace) -> list[float]:
    """The lowest rate at which a scanned run failed, between its neighbours."""
    found = [row["rate"] for row in scanned(args) if failed(row)]
    if not found:
        raise SystemExit("no scanned run failed; scan first, or from a higher rate or depth")
    return [round(min(found) * 2 ** (k / 2), 4) for k in (-1, 0, 1)]


def spread(values: list[float]) -> str:
    if not values:
        return ""
    digits = 3 if max(map(abs, values)) < 10 else 1
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(args: argparse.Namespace) -> None:
    print(f"\n| rate | failed of {len(SCAN_SEEDS)} | loss |\n|---|---|---|")
    for rate in sorted({row["rate"] for row in scanned(args)}):
        rows = [row for row in scanned(args) if row["rate"] == rate]
        values = [row["loss"] for row in rows if row["loss"] is not None]
        print(f"| {rate:g} | {sum(map(failed, rows))} | {spread(values)} |")
    columns = ("spikes", "swing", "features", "gradient", "gradient peak")
    print(f"\n| rate | variant | failed | loss, not failed | loss, all | {' | '.join(columns)} |")
    print("|---|---|---|---|---|" + "---|" * len(columns))
    held = [row for row in read(args.out / "results.jsonl") if row["seed"] in SEEDS]
    for rate, variant in itertools.product(rates(args), VARIANTS):
        rows = [
            r
            for r in held
            if (r["rate"], r["variant"], r["depth"], r["updates"]) == (rate, variant, args.depth, args.updates)
        ]
        if not rows:
            continue
        kept = spread([row["loss"] for row in rows if not failed(row)])
        rows = [row | {"features": row["features"] and math.log10(row["features"])} for row in rows]
        cells = [spread([row[name] for row in rows if row[name] is not None]) for name in ("loss", *columns)]
        print(f"| {rate:g} | {variant} | {sum(map(failed, rows))} of {len(rows)} | {kept} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scan", "run", "table"])
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--updates", type=int, default=120)
    parser.add_argument("--from", type=float, default=4e-3, dest="lowest", help="first rate of the scan")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/claims/scalelong"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "scan":
        scan(args)
    if args.what == "run":
        # The middle rate first, and seed by seed, so that an interrupted comparison has every variant.
        below, found, above = rates(args)
        cases = itertools.product((found, below, above), SEEDS, args.variants)
        make([(variant, rate, seed, args.depth, args.updates) for rate, seed, variant in cases], args)
    table(args)


if __name__ == "__main__":
    main()
