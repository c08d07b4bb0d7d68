"""Training with and without ScaleLong on Fashion-MNIST: FID over seeds at equal steps.

    python benchmarks/compare_scalelong.py                              18 runs of about 16 minutes on one quiet core
    python benchmarks/compare_scalelong.py --steps 400 --images 1000    the same runs, 6 to 7 minutes each
    python benchmarks/compare_scalelong.py --steps 4 --images 20 --seeds 0 --evaluations 2      a try

Every run is `diffdistill train fashion_mnist/teacher` with a network, a variant of ScaleLong and a seed; the averaged
model is sampled and measured by the run itself. A seed fixes the initial weights, the order of the data and all noise,
so the variants of a seed differ by the scaling alone, and the difference to "none" is taken seed by seed. The loss is
the mean over the last fifth of the run. A finished run is not repeated (with other overrides, give another OUT).
`OUT/results.json` holds every run and its protocol, `OUT/table.md` the table.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from diffdistill.cli import main as diffdistill
from diffdistill.evaluation.figures import numbers_of

NETWORKS = {
    "unet": [],  # the bundled teacher's: three resolutions, six long skips
    "uvit": [
        "network.kind=uvit",
        "network.uvit={patch_size: 4, hidden_size: 128, depth: 12, num_attention_heads: 4}",
        "optimizer.learning_rate=1e-3",
    ],
}
VARIANTS = {
    "none": "null",
    "cs 0.7": "{mode: cs, kappa: 0.7}",
    "cs 0.5": "{mode: cs, kappa: 0.5}",
    "cs 0.7 post_norm": "{mode: cs, kappa: 0.7, position: post_norm}",
    "1/sqrt(2)": "{mode: rsqrt2}",
    "ls": "{mode: ls}",
}
COLUMNS = ("fid", "kid", "precision", "recall", "loss")


def train(network: str, variant: str, seed: int, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    size = f"{args.steps}x{args.batch}-{args.images}at{args.evaluations}"
    name = f"{network}-{variant}-{size}-{seed}".replace(" ", "_").replace("/", "_")
    folder = out / name
    if not (folder / "evaluation.json").exists():
        words = [
            *NETWORKS[network], f"network.scalelong={VARIANTS[variant]}", f"seed={seed}", f"output_dir={folder}",
            f"max_train_steps={args.steps}", f"train_batch_size={args.batch}", "mixed_precision=no", "num_threads=1",
            "sample_every=0", "checkpoint_every=200", "keep_checkpoints=1", "log_every=10",
            f"evaluation.num_images={args.images}", f"evaluation.steps={args.evaluations}",
            "resume_from_checkpoint=latest", *args.overrides,
        ]  # fmt: skip
        code = diffdistill(["train", "fashion_mnist/teacher", *words])
        if code:
            raise SystemExit(code)
    evaluation = json.loads((folder / "evaluation.json").read_text())["teacher"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row and row["step"] > 0.8 * args.steps]
    figures = numbers_of(evaluation) | {"loss": mean(losses), "seconds": max(row["time"] for row in rows)}
    return {"network": network, "variant": variant, "seed": seed, **figures, "protocol": evaluation["protocol"]}


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def markdown(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    lines = [
        "| network | ScaleLong | FID | FID less that of none | KID x 1000 | precision | recall | loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, variant in dict.fromkeys((row["network"], row["variant"]) for row in rows):
        runs = [row for row in rows if (row["network"], row["variant"]) == (network, variant)]
        plain = {row["seed"]: row["fid"] for row in rows if (row["network"], row["variant"]) == (network, "none")}
        cells = [spread([(1000 if name == "kid" else 1) * run[name] for run in runs]) for name in COLUMNS]
        paired = [run["fid"] - plain[run["seed"]] for run in runs if run["seed"] in plain]
        cells.insert(1, spread(paired) if paired and variant != "none" else "")
        lines.append(f"| {network} | {variant} | {' | '.join(cells)} |")
    protocol = rows[0]["protocol"]
    lines.append(
        f"\n{args.steps} steps of {args.batch} images, {len(args.seeds)} seeds, mean ± standard deviation over seeds; "
        f"{protocol['num_images']} images, {args.evaluations} sampling steps, against {protocol['reference']['name']} "
        f"({protocol['reference']['num_images']} images), features {protocol['features']['id']} "
        f"{protocol['features']['sha256'][:12]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["uvit", "unet"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: none, cs 0.7, and ls or post_norm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000, help="to measure")
    parser.add_argument("--evaluations", type=int, default=10, help="sampling steps of those images")
    parser.add_argument("--out", type=Path, default=Path("runs/scalelong"))
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    # Seed by seed, so that an interrupted comparison has every variant.
    for seed in args.seeds:
        for network in args.networks:
            third = "ls" if network == "uvit" else "cs 0.7 post_norm"
            for variant in args.variants or ["none", "cs 0.7", third]:
                rows.append(train(network, variant, seed, args.out, args))
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "protocol"}), flush=True)
                (args.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.out / "table.md").write_text(markdown(rows, args))
    print("\n" + markdown(rows, args))


if __name__ == "__main__":
    main()
