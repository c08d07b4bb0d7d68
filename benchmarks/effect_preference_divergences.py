"""What the divergence of f-DPO does to variety: points that are wanted further right, and modes that are kept.

    python benchmarks/effect_preference_divergences.py                       seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_preference_divergences.py --seeds 0 --reference-steps 20 --steps 20          a look

The world, the pairs (all right) and the figures of effect_robust_preferences.py; the loss is Diffusion-DPO's with
`method.divergence`, log ratios by `log_ratio_scale`: beta, which it is by default, and a tenth of it. Judged after a
quarter and all of `--steps`. A mode is one of the eight Gaussians: `modes` is how many hold at least a tenth of their
share in the data, and `shares` exp(entropy) of how the points near the circle are shared among them, 8 where evenly.
"""

import copy
from argparse import Namespace
from collections.abc import Iterator
from math import pi

import torch
from effect_robust_preferences import SCHEDULER as SCHEDULER
from effect_robust_preferences import Pairs, drawn, errors, near, ranked_right, reference, sampled
from small_worlds import PlaneNetwork, Row, arguments, compared
from torch import Tensor

from diffdistill.alignment import diffusion_dpo_loss, noise_pairs

# By name: the divergence, and log_ratio_scale as a part of beta. Of reverse_kl it changes nothing.
ARMS = {
    "reverse_kl": ("reverse_kl", 1.0),
    "jensen_shannon": ("jensen_shannon", 1.0),
    "forward_kl": ("forward_kl", 1.0),
    "jensen_shannon, scale 0.1": ("jensen_shannon", 0.1),
    "forward_kl, scale 0.1": ("forward_kl", 0.1),
}


def aligned(
    start: PlaneNetwork, pairs: Pairs, arm: str, seed: int, options: Namespace
) -> Iterator[tuple[int, PlaneNetwork]]:
    """The model after a quarter of the steps, and after all."""
    torch.manual_seed(seed)
    network = copy.deepcopy(start).requires_grad_()
    optimizer = torch.optim.Adam(network.parameters(), 3e-4)
    divergence, part = ARMS[arm]
    said = {"beta": options.beta, "divergence": divergence, "log_ratio_scale": part * options.beta}
    for step in range(1, options.steps + 1):
        rows = torch.randint(0, len(pairs[0]), (64,))
        noised = noise_pairs(SCHEDULER, *(side[rows] for side in pairs))
        before = errors(start, noised)
        out = diffusion_dpo_loss(*errors(network, noised), *before, **said)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step in (options.steps // 4, options.steps):
            yield step, network


def shared(x: Tensor) -> Row:
    """How points near the circle are shared among the modes."""
    mode = (torch.atan2(x[:, 1], x[:, 0]) / (pi / 4)).round().long() % 8
    counts = torch.bincount(mode[near(x)], minlength=8).double()
    share = counts / counts.sum().clamp_min(1)
    return {"modes": float((counts >= len(x) / 80).sum()), "shares": float(torch.special.entr(share).sum().exp())}


def judged(network: PlaneNetwork, start: PlaneNetwork, held_out: Pairs, options: Namespace) -> Row:
    generator = torch.Generator().manual_seed(1)
    accuracy = ranked_right(network, start, held_out, options.draws, generator)
    x = sampled(network, generator)
    row = {"accuracy": accuracy, "right": float(x[:, 0].mean()), "near": float(near(x).float().mean())}
    return row | shared(x)


def rows_of(seed: int, options: Namespace) -> dict[str, Row]:
    start, held_out = reference(seed, options.reference_steps), drawn(1000, 1000 + seed)
    pairs = drawn(options.pairs, seed)
    rows = {"reference": judged(start, start, held_out, options)}
    for arm in ARMS:
        for step, network in aligned(start, pairs, arm, seed, options):
            rows[f"{arm}, {step} steps"] = judged(network, start, held_out, options)
    return rows


def main() -> None:
    options = arguments(__doc__, reference_steps=1500, steps=1000, pairs=400, beta=10_000, draws=16)
    compared(options, lambda seed: rows_of(seed, options))


if __name__ == "__main__":
    main()
