"""What the discriminator's choices do: the order of clipping and dividing, a loss a head, the weight of R1.

    python benchmarks/claims/discriminator.py ratio    # closed form, seconds
    python benchmarks/claims/discriminator.py heads    # on the bundled teacher's features, about a minute a row

ratio: student N(0, 1), teacher N(0.6, 0.7^2), a discriminator whose logit is scale * l + shift for the exact l; how
forward-KL weights by either order correlate with the exact ones, and their effective sample size.

heads: real images against the teacher's one-step images (sigma 2.5), levels of `fashion_mnist/f_distill`, two taps.
Each row trains heads from one seed, then measures on 1,000 held-out images of each kind: accuracy of the mean logit,
its logistic loss, E_student[exp(logit)] (right: 1), how far the heads are apart (|l_1 - l_2|, mean), R1 at the heads'
inputs, and the squared gradient of the mean logit at the pixels, of 200 real images.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from diffdistill.data import load_images, to_model_range
from diffdistill.denoiser import Denoiser
from diffdistill.losses import discriminator_loss
from diffdistill.matching.discriminators import AdversarialTerm
from diffdistill.matching.settings import Adversarial
from diffdistill.process import Level, LevelLaw, per_sample

TAPS = ("down_blocks.1", "mid_block")


def ratio_table() -> Iterator[str]:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()
    exact = -((x - 0.6) ** 2) / (2 * 0.49) - torch.tensor(0.7).log() + x**2 / 2
    r = exact.exp()
    yield f"{'logit':24} {'divide, clip [.01, 100]':>26} {'clip [.1, 20], divide':>26}  (correlation, share)"
    for scale, shift in ((1, 0), (1, 1), (1, -1), (1, 3), (1, -3), (0.5, 0), (2, 0), (2, -2)):
        raw = (scale * exact + shift).exp()
        ours, other = (raw / raw.mean()).clamp(0.01, 100), raw.clamp(0.1, 20)
        cells = []
        for weight in (ours, other / other.mean()):
            share = weight.sum() ** 2 / (len(weight) * weight.square().sum())
            cells.append(f"{torch.corrcoef(torch.stack([weight, r]))[0, 1]:.3f}, {share:.3f}")
        yield f"{scale:g} l {shift:+g}".ljust(24) + f"{cells[0]:>26} {cells[1]:>26}"


class Pictures:
    """Real images and the teacher's one-step ones, the first thousand of each held out."""

    def __init__(self, teacher: Denoiser):
        data = load_images("builtin:fashion_mnist", split="train")
        self.real, labels = to_model_range(data.images[:6000]), data.labels
        assert labels is not None
        self.labels = labels[:6000]
        noise = torch.randn(self.real.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            parts: list[Tensor] = [
                teacher(2.5 * z, torch.full((len(z),), 2.5), c)
                for z, c in zip(noise.split(500), self.labels.split(500), strict=True)
            ]
        self.fake = torch.cat(parts)

    def pick(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.real[rows], self.fake[rows], self.labels[rows]


def train(teacher: Denoiser, pictures: Pictures, seed: int, updates: int, own: bool, r1: float) -> str:
    torch.manual_seed(seed)
    term = AdversarialTerm(Adversarial(taps=TAPS, r1=r1), teacher, teacher)
    term.trains_features = False
    heads, law = term.discriminator, LevelLaw(Level(law="karras", u_max=0.8))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)

    def features(x: Tensor, sigma: Tensor, labels: Tensor) -> list[Tensor]:
        with torch.no_grad():
            x_t = x + per_sample(sigma, x) * torch.randn_like(x)
            return teacher.features(x_t, sigma, labels, TAPS)

    for _ in range(updates):
        real, fake, labels = pictures.pick(torch.randint(1000, 6000, (64,)))
        _, sigma = law.draw(64)
        seen = features(torch.cat([real, fake]), sigma.repeat(2), labels.repeat(2))
        logits = heads(seen)
        a, b = (logits if own else logits.mean(1)).chunk(2)
        loss = discriminator_loss(a, b)
        if r1:
            loss = loss + 0.5 * r1 * heads.r1([f[:64] for f in seen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, fake, labels = pictures.pick(torch.arange(1000))
    _, sigma = law.draw(1000)
    of_real, of_fake = (features(x, sigma, labels) for x in (real, fake))
    with torch.no_grad():
        a, b = heads(of_real), heads(of_fake)
        apart = (torch.cat([a, b])[:, 0] - torch.cat([a, b])[:, 1]).abs().mean()
        a, b = a.mean(1), b.mean(1)
        accuracy = 0.5 * ((a > 0).float().mean() + (b < 0).float().mean())
    penalty = heads.r1(of_real).mean()
    x = real[:200] + per_sample(sigma[:200], real) * torch.randn_like(real[:200])
    logit = heads(teacher.features(x.requires_grad_(), sigma[:200], labels[:200], TAPS)).mean(1)
    pixels = torch.autograd.grad(logit.sum(), x)[0].flatten(1).square().sum(1).mean()
    return (
        f"{'own' if own else 'shared':7} {r1:7g} {seed:5} {accuracy:9.3f} {discriminator_loss(a, b):8.3f} "
        f"{b.exp().mean():8.3f} {apart:7.2f} {penalty:9.3g} {pixels:9.3g}"
    )


def heads_table(updates: int, seeds: list[int], weights: list[float]) -> Iterator[str]:
    teacher = Denoiser.from_pretrained("builtin:fashion_mnist_teacher").requires_grad_(False)
    pictures = Pictures(teacher)
    yield (
        f"{'loss':7} {'r1':>7} {'seed':>5} {'accuracy':>9} {'loss':>8} {'E_q[r]':>8} {'apart':>7} {'R1':>9} "
        f"{'pixels':>9}"
    )
    for own, r1 in [(False, 0.0), *((True, weight) for weight in weights)]:
        for seed in seeds:
            yield train(teacher, pictures, seed, updates, own, r1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ratio", "heads"])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--r1", type=float, nargs="+", default=[0.0, 1e-4, 1e-3, 1e-2, 1e-1])
    asked = parser.parse_args()
    table = ratio_table() if asked.what == "ratio" else heads_table(asked.updates, asked.seeds, asked.r1)
    for line in table:
        print(line, flush=True)
