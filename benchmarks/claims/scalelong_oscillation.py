"""How much hidden features of a deep U-ViT swing while it trains, with and without ScaleLong (2310.13545).

    python benchmarks/claims/scalelong_oscillation.py                        four minutes of one core
    python benchmarks/claims/scalelong_oscillation.py --steps 8 --seeds 0    a look
    python benchmarks/claims/scalelong_oscillation.py --out docs/pictures/scalelong_oscillation

A small U-ViT of depth 24 learns to denoise Fashion-MNIST at 8x8 by the package's own loss, 80 updates. After every one
a fixed noised batch goes through it, and the rms of every decoder block's output is kept. In the table, over the
decoder blocks and the updates:

    swing        mean |rms_k - rms_(k-1)|                   the paper's oscillation of hidden features
    relative     the same over the mean rms of that block   smaller features swing less by themselves: this does not
    gain         ||f(x + d) - f(x)|| / ||d|| before training, f the network, d small
    grad std     standard deviation of the gradient's norm over the updates
    loss         mean of the last ten updates

Mean and standard deviation over seeds; the seeds share the data and the noise between variants.

`OUT.json` holds every run, `OUT.png` (extra `plot`) the rms of the block that takes the deepest skip.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.data import batch_indices, load_images, to_model_range
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.losses import denoising_loss
from diffdistill.models import UViT, apply_scalelong
from diffdistill.process import EDM, per_sample
from diffdistill.training.randomness import seed_step

VARIANTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "1/sqrt(2)": {"mode": "rsqrt2"},
    "cs 0.9": {"mode": "cs", "kappa": 0.9},
    "cs 0.7": {"mode": "cs", "kappa": 0.7},
    "cs 0.5": {"mode": "cs", "kappa": 0.5},
    "ls": {"mode": "ls"},
}
BATCH, WIDTH = 16, 64


def noised(images: Tensor, step: int, seed: int, count: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """x0, sigma and x_t of a step, the same for every variant; ln sigma ~ N(-1.2, 1.2^2) (2206.00364)."""
    seed_step(seed, step)
    x0 = to_model_range(images[batch_indices(len(images), count, seed, step)])
    sigma = (1.2 * torch.randn(count) - 1.2).exp()
    return x0, sigma, x0 + per_sample(sigma, x0) * torch.randn_like(x0)


def deep_uvit(depth: int, patch: int, seed: int, variant: dict[str, Any] | None) -> UViT:
    """A narrow U-ViT of 8x8 gray images, the same weights for every variant of a seed."""
    torch.manual_seed(seed)
    network = UViT(
        sample_size=8, in_channels=1, patch_size=patch, hidden_size=WIDTH, depth=depth, num_attention_heads=4
    ).train()
    with torch.no_grad():
        # The paper's deviation 0.02 is for 512 channels or more; this gives narrow maps the gain they have there.
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(math.sqrt(512 / WIDTH))
    if variant is not None:
        apply_scalelong(network, **variant)
    return network


def gradient_norm(network: nn.Module) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))


@torch.no_grad()
def rms_of_decoder(model: Denoiser, x_t: Tensor, sigma: Tensor) -> list[float]:
    names = [f"out_blocks.{j}" for j in range(len(model.network.out_blocks))]
    _, features = model.tapped(x_t, sigma, None, names)
    return [float(f.square().mean().sqrt()) for f in features]


@torch.no_grad()
def gain(network: nn.Module, x: Tensor) -> float:
    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    change = network(x + step, 0.0, return_dict=False)[0] - network(x, 0.0, return_dict=False)[0]
    return float(change.norm() / step.norm())


def train(
    images: Tensor, variant: dict[str, Any] | None, seed: int, *, depth: int = 24, steps: int = 80, rate: float = 5e-4
) -> dict[str, Any]:
    network = deep_uvit(depth, 2, seed, variant)
    process = EDM()
    model = Denoiser(network, process).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    _, probe_sigma, probe = noised(images, 10**6, seed=0)
    start = gain(network, probe)
    rms, norms, losses = [rms_of_decoder(model, probe, probe_sigma)], [], []
    for step in range(steps):
        x0, sigma, x_t = noised(images, step, seed)
        loss = denoising_loss(model(x_t, sigma), x0, sigma, process.sigma_data).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(gradient_norm(network))
        optimizer.step()
        losses.append(float(loss.detach()))
        rms.append(rms_of_decoder(model, probe, probe_sigma))
    track = torch.tensor(rms, dtype=torch.float64)
    swings = track.diff(dim=0).abs().mean(0)
    return {
        "seed": seed,
        "swing": float(swings.mean()),
        "relative": float((swings / track.mean(0)).mean()),
        "gain": start,
        "grad std": stdev(norms) if steps > 1 else math.nan,
        "loss": mean(losses[-10:]),
        "rms of the deepest": track[:, 0].tolist(),
    }


COLUMNS = ("swing", "relative", "gain", "grad std", "loss")


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def markdown(runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = [f"| variant | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name, rows in runs.items():
        cells = [spread([row[column] for row in rows]) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: dict[str, list[dict[str, Any]]], file: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib; install diffdistill[plot]") from error
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in runs.items():
        axes.plot(rows[0]["rms of the deepest"], label=name, linewidth=1)
    axes.set(xlabel="update", ylabel="rms of the first decoder block's output", yscale="log")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/scalelong_oscillation"), help="without ending")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images("builtin:fashion_mnist", split="train", image_size=8, limit=2000).images
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, variant in VARIANTS.items():
        runs[name] = [
            train(images, variant, seed, depth=args.depth, steps=args.steps, rate=args.rate) for seed in args.seeds
        ]
        print(name, *(f"{column} {mean(row[column] for row in runs[name]):.4f}" for column in COLUMNS), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "depth": args.depth,
        "steps": args.steps,
        "batch": BATCH,
        "rate": args.rate,
        "torch": torch.__version__,
    }
    args.out.with_suffix(".json").write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    print("\n" + markdown(runs))
    plot(runs, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
