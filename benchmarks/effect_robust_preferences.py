"""What Dr. DPO does against wrong labels: Diffusion-DPO on pairs of which 0, 20 and 40 % are the wrong way round.

    python benchmarks/effect_robust_preferences.py                           seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_robust_preferences.py --seeds 0 --reference-steps 20 --steps 20              a look

Eight Gaussians on a circle in the plane, a small network of epsilon on DDPM's schedule as reference; of two points the
one further right is wanted. The model trains on `--pairs` pairs by Diffusion-DPO's loss (`alignment`), with its plain
mean, with the robust one at 1 and 0.1, and with label smoothing at the part that is wrong, which a user must know. A
step is what `align` does in one pass. Held-out pairs are right: accuracy is the part of them whose implicit reward,
over `--draws` noises, has the right sign; `right` is how far right points drawn from the model are (DDIM, 50 steps).
"""

import copy
from argparse import Namespace

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from small_worlds import RADIUS, PlaneNetwork, Row, arguments, compared, ring
from torch import Generator, Tensor

from diffdistill.alignment import NoisedPairs, diffusion_dpo_loss, noise_pairs, robust_mean

SCHEDULER = DDPMScheduler()
LEVELS = 125 * ((1 - SCHEDULER.alphas_cumprod) / SCHEDULER.alphas_cumprod).log()  # 250 ln sigma
# By name: robust_beta, and a factor on beta. The last two are controls: a robust mean also lets a model go further.
ARMS: dict[str, tuple[float | None, float]] = {
    "mean": (None, 1.0),
    "robust 1": (1.0, 1.0),
    "robust 0.1": (0.1, 1.0),
    "smoothed": (None, 1.0),
    "mean, a tenth of beta": (None, 0.1),
    "robust 1, ten times beta": (1.0, 10.0),
}
Pairs = tuple[Tensor, Tensor]


def drawn(count: int, seed: int, wrong: float = 0.0) -> Pairs:
    """`(wanted, other)`, points on a circle of radius 1; the part `wrong` of them the other way round."""
    x = ring(2 * count, torch.Generator().manual_seed(seed)).reshape(2, count, 1, 1, 2) / RADIUS
    swap = (x[0] < x[1])[:, :, :, :1] ^ (torch.arange(count) < round(wrong * count)).reshape(-1, 1, 1, 1)
    return torch.where(swap, x[1], x[0]), torch.where(swap, x[0], x[1])


def errors(network: PlaneNetwork, noised: NoisedPairs) -> Pairs:
    return noised.losses(network(noised.x_t, LEVELS[noised.t])[0])


def reference(seed: int, steps: int) -> PlaneNetwork:
    torch.manual_seed(seed)
    network = PlaneNetwork()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = (ring(512) / RADIUS).reshape(2, 256, 1, 1, 2)
        loss = torch.cat(errors(network, noise_pairs(SCHEDULER, *x))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


def aligned(start: PlaneNetwork, pairs: Pairs, arm: str, wrong: float, seed: int, options: Namespace) -> PlaneNetwork:
    torch.manual_seed(seed)
    network = copy.deepcopy(start).requires_grad_()
    optimizer = torch.optim.Adam(network.parameters(), 3e-4)
    smoothing = wrong if arm == "smoothed" else 0.0
    robust, factor = ARMS[arm]
    beta = factor * options.beta
    for _ in range(options.steps):
        rows = torch.randint(0, len(pairs[0]), (64,))
        noised = noise_pairs(SCHEDULER, *(side[rows] for side in pairs))
        before = errors(start, noised)
        out = diffusion_dpo_loss(*errors(network, noised), *before, beta=beta, label_smoothing=smoothing)
        assert out.losses is not None
        loss = out.loss if robust is None else robust_mean(out.losses.detach(), robust).weights @ out.losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def ranked_right(network: PlaneNetwork, start: PlaneNetwork, pairs: Pairs, draws: int, generator: Generator) -> float:
    """The part of pairs whose implicit reward, over so many noises, has the right sign."""
    margin = torch.zeros(len(pairs[0]))
    for _ in range(draws):
        noised = noise_pairs(SCHEDULER, *pairs, generator=generator)
        margin += diffusion_dpo_loss(*errors(network, noised), *errors(start, noised)).margin
    return float((margin > 0).float().mean())


@torch.no_grad()
def sampled(network: PlaneNetwork, generator: Generator) -> Tensor:
    """2,000 points `(2000, 2)` of a model, by DDIM with 50 steps."""
    sampler = DDIMScheduler(clip_sample=False)
    sampler.set_timesteps(50)
    x = torch.randn(2000, 1, 1, 2, generator=generator)
    for t in sampler.timesteps:
        x = sampler.step(network(x, LEVELS[t].reshape(1))[0], t, x).prev_sample
    return x.flatten(1)


def near(x: Tensor) -> Tensor:
    """Which points are within 0.4 of the circle."""
    return (x.norm(dim=1) - 1).abs() < 0.4


def judged(network: PlaneNetwork, start: PlaneNetwork, held_out: Pairs, options: Namespace) -> Row:
    generator = torch.Generator().manual_seed(1)
    accuracy = ranked_right(network, start, held_out, options.draws, generator)
    x = sampled(network, generator)
    return {"accuracy": accuracy, "right": float(x[:, 0].mean()), "near the circle": float(near(x).float().mean())}


def rows_of(seed: int, options: Namespace) -> dict[str, Row]:
    start, held_out = reference(seed, options.reference_steps), drawn(1000, 1000 + seed)
    rows = {}
    for wrong in (0.0, 0.2, 0.4):
        pairs = drawn(options.pairs, seed, wrong)
        for arm in ARMS:
            if (arm == "smoothed" and not wrong) or ("beta" in arm and wrong < 0.4):
                continue
            network = aligned(start, pairs, arm, wrong, seed, options)
            rows[f"{100 * wrong:.0f} % wrong, {arm}"] = judged(network, start, held_out, options)
    return rows


def main() -> None:
    options = arguments(__doc__, reference_steps=1500, steps=1000, pairs=400, beta=1000, draws=16)
    compared(options, lambda seed: rows_of(seed, options))


if __name__ == "__main__":
    main()
