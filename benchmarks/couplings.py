"""What a coupling does to a small flow: eight Gaussians to two moons, without conditions, by moon, by position.

    python benchmarks/couplings.py                        seeds 0, 1, 2; minutes of one thread
    python benchmarks/couplings.py --steps 500 --seeds 0  a look
    python benchmarks/couplings.py --json couplings.json

A network of four layers learns v(x_t, t, c) of x_t = (1 - t) z + t x (2209.03003) with the noise of each batch coupled
by `diffdistill.coupling`. The table is W2^2, the mean squared distance of the cheapest pairing of samples and data,
with one Euler step and with a hundred, after 2503.10636, Figure 1.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from diffdistill.coupling import Coupling, cheapest, coupled, distances

WORLDS: dict[str, tuple[Coupling, ...]] = {
    "no condition": ("independent", "ot"),
    "which moon": ("independent", "ot", "c2ot"),
    "position": ("independent", "ot", "c2ot"),
}


def gaussians(count: int) -> Tensor:
    """Eight at a distance of 5 from the middle, of variance 0.1."""
    angle = torch.randint(0, 8, (count,)) * torch.pi / 4
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1**0.5 * torch.randn(count, 2)


def moons(count: int) -> tuple[Tensor, Tensor]:
    """`(points (B, 2), which moon (B,))`: two half circles of radius 3, around (-1, -1), with noise of 0.2."""
    which, angle = torch.randint(0, 2, (count,)), torch.rand(count) * torch.pi
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.where(which[:, None] == 0, upper, lower)
    return 3 * points - 1 + 0.2 * torch.randn(count, 2), which


def conditions(world: str, points: Tensor, which: Tensor) -> tuple[Tensor | None, Tensor]:
    """What the coupling sees, and two numbers that the network sees: the moon, or a direction made of x."""
    if world == "no condition":
        return None, torch.zeros(len(points), 2)
    if world == "which moon":
        return which, torch.stack([which.float(), 1 - which.float()], 1)
    angle = torch.pi * (points[:, 0] + 4) / 12  # the moons' x fills (0, pi): a half turn, so that cosines tell it
    seen = torch.stack([angle.cos(), angle.sin()], 1)
    return seen, seen


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
    )


def trained(world: str, kind: Coupling, steps: int, batch: int) -> nn.Module:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z, (x, which) = gaussians(batch), moons(batch)
        cond, seen = conditions(world, x, which)
        # Plain transport does not look at conditions; `coupled` refuses it beside some, which is what is shown here.
        z = z[coupled(z, x, None if kind == "ot" else cond, kind)]
        t = torch.rand(batch, 1)
        velocity = model(torch.cat([(1 - t) * z + t * x, t, seen], 1))
        optimizer.zero_grad()
        (velocity - (x - z)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def sampled(model: nn.Module, seen: Tensor, steps: int) -> Tensor:
    x = gaussians(len(seen))
    for k in range(steps):
        x = x + model(torch.cat([x, torch.full((len(x), 1), k / steps), seen], 1)) / steps
    return x


def squared_w2(a: Tensor, b: Tensor) -> float:
    cost = distances(a, b)
    return float(cost[cheapest(cost), torch.arange(len(b))].mean())


def measured(world: str, kind: Coupling, seed: int, options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(seed)
    start = time.process_time()
    model = trained(world, kind, options.steps, options.batch)
    seconds = time.process_time() - start
    torch.manual_seed(1000 + seed)
    x, which = moons(options.samples)
    _, seen = conditions(world, x, which)
    found = {f"{steps} step": squared_w2(sampled(model, seen, steps), x) for steps in (1, 100)}
    return found | {"ms a training step": 1000 * seconds / options.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(99)
    floor = squared_w2(moons(options.samples)[0], moons(options.samples)[0])
    rows: dict[str, dict[str, list[float]]] = {}
    print(f"data against data, {options.samples} points: {floor:.3f}")
    for world, kinds in WORLDS.items():
        for kind in kinds:
            runs = [measured(world, kind, seed, options) for seed in options.seeds]
            row = {name: [run[name] for run in runs] for name in runs[0]}
            rows[f"{world}, {kind}"] = row
            spread = "   ".join(
                f"{name}: {statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for name, v in row.items()
            )
            print(f"{world:14} {kind:12} {spread}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "floor": floor, "rows": rows}))


if __name__ == "__main__":
    main()
