"""f-distill's and Uni-Instruct's claims on a mixture with rare modes in the plane: recall and mass of each mode.

    python benchmarks/claims/rare_modes.py tune --jobs 2       learning rates, on seeds 100 to 102
    python benchmarks/claims/rare_modes.py run --jobs 2        the chosen rates, on seeds 0 to 4
    python benchmarks/claims/rare_modes.py run --updates 2400  the same rates, four times as long
    python benchmarks/claims/rare_modes.py check               the runs' gradients against the package's own step
    python benchmarks/claims/rare_modes.py table               docs/claims.json, the tables and the figure

The teacher is the mixture's exact denoiser, the discriminator a perceptron of the point and its level; student and
critic start as one network that has learned the teacher's denoiser. Many runs train at once, each with networks of its
own, so the step is written here once more, from the package's losses, rows and trackers: `check` compares it with
`DistributionMatching`. Results are lines of files; a run that is there already is not made again.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from plane import INPUTS, PROCESS, Adam, MixtureTeacher, PointHeads, measures, point_denoisers, ring_weights
from rare_modes_results import chosen_rates, table
from report import CLAIMS, read
from torch import Tensor
from torch.nn.functional import softplus

from diffdistill.denoiser import Denoiser
from diffdistill.divergences import get_divergence
from diffdistill.losses import denoising_loss, discriminator_loss, fisher_gradient, native_weight, score_gap_gradient
from diffdistill.matching.level_mean import LevelNormaliser
from diffdistill.matching.ratio import RatioTracker
from diffdistill.matching.settings import Choices
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.base import Adversarial, Method
from diffdistill.methods.dmd2 import DMD2
from diffdistill.methods.f_distill import FDistill
from diffdistill.methods.sid import SiD
from diffdistill.methods.uni_instruct import UniInstruct
from diffdistill.process import Level, LevelLaw, per_sample
from diffdistill.training.optim.updater import Ema

STEPS, BATCH, CRITIC_UPDATES, WIDTH, SIGMA_INIT = 600, 128, 2, 48, 2.5
START_STEPS, START_BATCH, CRITIC_WARMUP = 1000, 256, 0.05
CRITIC_RATE, HEAD_RATE, WEIGHT = 1e-3, 1e-3, 3e-2
RATES = (1e-3, 2e-3, 4e-3)
TUNING_SEEDS, SEEDS, DRAWN, GROUP = (100, 101, 102), (0, 1, 2, 3, 4), 50_000, 12
PROTOCOL = {
    "updates": STEPS, "batch": BATCH, "critic_updates": CRITIC_UPDATES, "width": WIDTH, "drawn": DRAWN,
    "critic_rate": CRITIC_RATE, "head_rate": HEAD_RATE, "adversarial_weight": WEIGHT, "rates": RATES,
    "tuning_seeds": TUNING_SEEDS, "seeds": SEEDS, "weights": [round(w, 5) for w in ring_weights().tolist()],
}  # fmt: skip
LAW = LevelLaw(Level(law="loguniform", sigma_min=PROCESS.sigma_min, sigma_max=PROCESS.sigma_max))

Tensors = Sequence[Tensor]
ADVERSARIAL = Adversarial(taps=(INPUTS,), weight=WEIGHT)
RATIO_ONLY = Adversarial(taps=(INPUTS,), weight=0.0)


class Uncalibrated(RatioTracker):
    """Clamp and clip alone: the ratio as the discriminator says it."""

    def forward(self, logit: Tensor, u: Tensor) -> Tensor:
        return logit.clamp(-self.max_logit, self.max_logit).clamp(*self.log_clip)


@dataclasses.dataclass(frozen=True)
class Rival:
    """A row: a method's settings, and what of the ratio's normalisation is left out."""

    settings: Method
    calibrated: bool = True
    normalize: bool | None = None  # None: as the method has it

    def choices(self) -> Choices:
        """The method's row of the table; the level weight is the one that is exact in few dimensions."""
        settings = self.settings.model_copy(update={"level_weight": "dmd_level"})
        found = dataclasses.replace(settings.choices(), critic_warmup=CRITIC_WARMUP)
        return found if self.normalize is None else dataclasses.replace(found, normalize=self.normalize)

    def tracker(self, count: int) -> RatioTracker | None:
        """One for `count` runs, each with bins of its own, see `Distillation.places`."""
        ratio = self.choices().ratio
        if ratio is None:
            return None
        kind = RatioTracker if self.calibrated else Uncalibrated
        return kind(count * ratio.bins, ratio.decay, ratio.clip, warn_every=10**9)


def f_distill(divergence: str, adversarial: Adversarial = ADVERSARIAL) -> FDistill:
    return FDistill(name="f_distill", divergence=divergence, adversarial=adversarial)


def uni_instruct(divergence: str, detach_ratio: bool = False) -> UniInstruct:
    return UniInstruct(
        name="uni_instruct", divergence=divergence, detach_ratio=detach_ratio, adversarial=ADVERSARIAL
    )  # fmt: skip


RIVALS: dict[str, Rival] = {
    "reverse KL": Rival(DMD2(name="dmd2", adversarial=None)),
    "f-distill, ratio only, Jensen-Shannon": Rival(f_distill("jensen_shannon", RATIO_ONLY)),
    "f-distill, ratio only, forward KL": Rival(f_distill("forward_kl", RATIO_ONLY)),
    "DMD2": Rival(DMD2(name="dmd2", adversarial=ADVERSARIAL)),
    "f-distill, softened reverse KL": Rival(f_distill("softened_reverse_kl")),
    "f-distill, Hellinger": Rival(f_distill("squared_hellinger")),
    "f-distill, Jeffreys": Rival(f_distill("jeffreys")),
    "f-distill, Jensen-Shannon": Rival(f_distill("jensen_shannon")),
    "f-distill, forward KL": Rival(f_distill("forward_kl")),
    "f-distill, Jensen-Shannon, E[r] free": Rival(f_distill("jensen_shannon"), calibrated=False),
    "f-distill, forward KL, E[r] free": Rival(f_distill("forward_kl"), calibrated=False),
    "f-distill, Jensen-Shannon, E[r], E[h] free": Rival(
        f_distill("jensen_shannon"), calibrated=False, normalize=False
    ),
    "f-distill, forward KL, E[r], E[h] free": Rival(f_distill("forward_kl"), calibrated=False, normalize=False),
    "SiD, alpha 1": Rival(SiD(name="sid", alpha=1.0)),
    "SiD, alpha 1/2": Rival(SiD(name="sid", alpha=0.5)),
    "SiDA, alpha 1": Rival(SiD(name="sid", alpha=1.0, adversarial=ADVERSARIAL)),
    "Uni-Instruct, Jensen-Shannon": Rival(uni_instruct("jensen_shannon")),
    "Uni-Instruct, forward KL": Rival(uni_instruct("forward_kl")),
    "Uni-Instruct, forward KL, ratio detached": Rival(uni_instruct("forward_kl", detach_ratio=True)),
}


@dataclasses.dataclass(frozen=True)
class Run:
    rival: str
    rate: float
    seed: int
    updates: int = STEPS


def starts(seeds: Sequence[int]) -> Tensors:
    """Weights of networks that have learned the teacher's denoiser by regression: the start of critic and student."""
    torch.manual_seed(sum(seeds))
    teacher, networks = MixtureTeacher(), point_denoisers(len(seeds), WIDTH)
    optimizer = torch.optim.Adam(networks.parameters(), lr=5e-3, betas=(0.9, 0.99))
    for step in range(START_STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / START_STEPS)
        _, sigma = levels(len(seeds), START_BATCH)
        x_t = noised(teacher.sample(len(sigma)), sigma)
        weight = per_sample(native_weight(PROCESS, sigma), x_t)
        loss = weight * (networks(x_t, sigma) - teacher(x_t, sigma)).square()
        optimizer.zero_grad()
        (len(seeds) * loss.mean()).backward()
        optimizer.step()
    return [p.detach() for p in networks.parameters()]


def levels(count: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """u and sigma for `count` runs, stratified in each."""
    drawn = [LAW.draw(batch) for _ in range(count)]
    return torch.cat([u for u, _ in drawn]), torch.cat([sigma for _, sigma in drawn])


def noised(x0: Tensor, sigma: Tensor) -> Tensor:
    return x0 + per_sample(sigma, x0) * torch.randn_like(x0)


def draw(students: Denoiser, count: int) -> Tensor:
    """`count` samples of each student, one after another, `(runs * count, 2, 1, 1)`."""
    total = students.network.count * count
    return students(SIGMA_INIT * torch.randn(total, 2, 1, 1), torch.full((total,), SIGMA_INIT))


class Distillation:
    """Several runs of one row at once, each with networks, averages and gradients of its own."""

    def __init__(self, runs: Sequence[Run], begin: Mapping[int, Tensors]):
        self.count, rival = len(runs), RIVALS[runs[0].rival]
        assert all(run.rival == runs[0].rival for run in runs)
        self.row = rival.choices()
        self.teacher, self.heads = MixtureTeacher(), PointHeads(self.count, WIDTH)
        self.student, self.critic = point_denoisers(self.count, WIDTH), point_denoisers(self.count, WIDTH)
        for network in (self.student, self.critic):
            for k, parameter in enumerate(network.parameters()):
                parameter.data.copy_(torch.stack([begin[run.seed][k] for run in runs]))
        self.tracker = rival.tracker(self.count)
        self.normaliser = LevelNormaliser(bins=32 * self.count)
        self.average = Ema(self.student, 0.99)
        self.optimizers = [
            Adam(self.student.parameters(), [run.rate for run in runs]),
            Adam(self.critic.parameters(), [CRITIC_RATE] * self.count),
            Adam(self.heads.parameters(), [HEAD_RATE] * self.count),
        ]

    def places(self, u: Tensor) -> Tensor:
        """u of each run in a part of [0, 1] of its own, so that no two runs share a bin of a running mean."""
        run = torch.arange(self.count).repeat_interleave(len(u) // self.count)
        return (run + u.clamp(max=0.9999)) / self.count

    def logit(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.heads(self.teacher.network.inputs(*PROCESS.to_network(x_t, sigma)))

    def critic_loss(self, x0: Tensor, real: Tensor | None) -> Tensor:
        """Sum over the runs of the critic's and the discriminator's loss, as in the package's step."""
        _, sigma = levels(self.count)
        prediction = self.critic(noised(x0, sigma), sigma)
        loss = denoising_loss(prediction, x0, sigma, weight=native_weight(PROCESS, sigma)).mean()
        if real is not None:
            _, sigma = levels(self.count)
            eps = torch.randn_like(torch.cat([real, x0])).chunk(2)
            logits = (self.logit(x + per_sample(sigma, x) * e, sigma) for x, e in zip((real, x0), eps, strict=True))
            loss = loss + discriminator_loss(*logits)
        return self.count * loss

    def student_gradient(self, x0: Tensor, progress: float) -> Tensor:
        """Of each run, with the package's losses, `(runs * B, 2, 1, 1)`; only means over a batch are taken here."""
        row, x = self.row, x0.detach().requires_grad_()
        warm = progress < row.fisher_warmup
        u, sigma = levels(self.count)
        place, x_t = self.places(u), noised(x, sigma)
        with torch.set_grad_enabled(row.form == "fisher"):
            inputs = x, self.teacher(x_t, sigma), self.critic(x_t, sigma)
        raw = None if row.adversarial is None else self.logit(x_t, sigma)
        logit = None if self.tracker is None or raw is None else self.tracker(raw, place)
        divergence = "reverse_kl" if warm else row.divergence
        if row.form == "score_gap":
            gradient = score_gap_gradient(*inputs, logit=logit, divergence=divergence)
        else:
            gradient = fisher_gradient(
                *inputs, logit=logit, divergence=divergence, alpha=1.0 if warm else row.alpha,
                detach_ratio=row.detach_ratio, retain_graph=True,
            )  # fmt: skip
        if row.normalize and not warm and logit is not None:
            h = get_divergence(divergence).weight(logit.detach()).reshape(self.count, -1)
            gradient = gradient / per_sample(h.mean(1).repeat_interleave(h.shape[1]), x)
        if self.tracker is not None and raw is not None:
            self.tracker.update(raw.detach(), place)
        gradient = gradient * self.normaliser(x.detach(), inputs[1].detach(), place)
        if row.adversarial is not None and raw is not None and row.adversarial.weight > 0 and not warm:
            weight = row.adversarial.weight * x[0].numel()
            gradient = gradient + torch.autograd.grad(weight * softplus(-raw).sum(), x)[0]
        return gradient

    def update(self, step: int, total: int) -> None:
        students, critics, heads = self.optimizers
        x0 = draw(self.student, BATCH)
        for _ in range(CRITIC_UPDATES):
            real = None if self.row.adversarial is None else self.teacher.sample(len(x0))
            self.critic_loss(x0.detach(), real).backward()
            critics.step()
            if real is not None:
                heads.step()
        progress = step / total
        if progress >= CRITIC_WARMUP:
            x0.backward(self.student_gradient(x0, progress) / (2 * BATCH))
            students.step(min(1.0, 2 * (1 - progress)))
            self.average.update(self.student)


def distil(runs: Sequence[Run], begin: Mapping[int, Tensors]) -> list[dict[str, Any]]:
    """Train the runs, all of one row, and measure their averaged students."""
    torch.set_num_threads(1)
    torch.manual_seed(sum(run.seed for run in runs))
    began, task = time.time(), Distillation(runs, begin)
    for step in range(runs[0].updates):
        task.update(step, runs[0].updates)
    with torch.no_grad():
        samples = draw(task.average.module, DRAWN).reshape(len(runs), DRAWN, 2)
    seconds = round((time.time() - began) / len(runs), 1)
    return [
        dataclasses.asdict(run) | measures(points) | {"seconds": seconds}
        for run, points in zip(runs, samples, strict=True)
    ]


def check() -> float:
    """Largest difference to the package's step, of the student's gradient and the critic's loss, over all rows."""
    torch.manual_seed(0)
    begin, worst = {0: [p.detach()[0] for p in point_denoisers(1, WIDTH).parameters()]}, 0.0
    for name, rival in RIVALS.items():
        torch.manual_seed(1)
        here, x0 = Distillation([Run(name, 1e-3, 0)], begin), torch.randn(BATCH, 2, 1, 1)
        for parameter in here.critic.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        method = DistributionMatching(rival.choices(), here.teacher, here.critic, LAW, LAW)
        real = here.teacher.sample(BATCH) if method.adversarial is not None else None
        if method.adversarial is not None:
            method.adversarial.discriminator.heads[0] = here.heads
        if method.ratio is not None:
            method.ratio = rival.tracker(1)
        torch.manual_seed(2)
        mine = [here.student_gradient(x0, p) for p in (0.1, 0.5, 0.6)], here.critic_loss(x0, real).detach()
        torch.manual_seed(2)
        theirs = (
            [method.student_gradient(x0, None, p)[0] for p in (0.1, 0.5, 0.6)],
            method.critic_loss(x0, None, real)[0],
        )
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine[0], theirs[0], strict=True))
        difference = max(difference, abs(float(mine[1] / theirs[1].detach()) - 1))
        alone = independence(name, begin, x0)
        print(f"{name}: {difference:.1e}, between runs {alone:.1e}")
        worst = max(worst, difference, alone)
    return worst


def independence(name: str, begin: Mapping[int, Tensors], x0: Tensor) -> float:
    """How far the gradient of a run moves, relatively, if only the samples of another run do: nothing is right."""
    found = []
    for factor in (1.0, 3.0):
        torch.manual_seed(3)
        task = Distillation([Run(name, 1e-3, 0), Run(name, 1e-3, 0)], begin)
        both = torch.cat([x0, factor * x0])
        found.append([task.student_gradient(both, 0.5)[: len(x0)] for _ in range(2)][1])
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def work(wanted: Sequence[Run], path: Path, jobs: int) -> None:
    """Make the runs that are not in `path` yet, in groups, and append each group as it ends."""
    done = {Run(row["rival"], row["rate"], row["seed"], row["updates"]) for row in read(path)}
    runs = [run for run in wanted if run not in done]
    if not runs:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = sorted({run.seed for run in runs})
    begin = dict(zip(seeds, zip(*starts(seeds), strict=True), strict=True))
    rows = [[run for run in runs if run.rival == name] for name in RIVALS]
    groups = [row[k : k + GROUP] for row in rows for k in range(0, len(row), GROUP)]
    with ProcessPoolExecutor(jobs) as pool, path.open("a") as out:
        for future in as_completed([pool.submit(distil, group, begin) for group in groups]):
            found = future.result()
            out.write("".join(json.dumps(row) + "\n" for row in found))
            out.flush()
            print(len(found), "runs,", found[0]["seconds"], "s each", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["tune", "run", "all", "check", "table"])
    parser.add_argument("--results", type=Path, default=Path("runs/claims"), help="folder of tune.jsonl and run.jsonl")
    parser.add_argument(
        "--updates", type=int, default=STEPS, help="of the student in the runs; tuning takes the default"
    )
    parser.add_argument("--jobs", type=int, default=1, help="groups of runs at a time, one thread each")
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), help="rows to make; all if left out"
    )
    parser.add_argument("--figure", type=Path, default=CLAIMS.parent / "pictures" / "rare_modes.png")
    args = parser.parse_args()
    if args.verb == "check" and not check() < 1e-4:
        raise SystemExit("the runs' step is not the package's")
    tuned = args.results / "rare_modes_tune.jsonl"
    if args.verb in ("tune", "all"):
        work(
            [Run(name, rate, seed) for seed in TUNING_SEEDS for name in args.rivals for rate in RATES],
            tuned,
            args.jobs,
        )
    rates = chosen_rates(read(tuned), RIVALS, RATES, TUNING_SEEDS)
    if args.verb in ("run", "all"):
        wanted = [Run(name, rates[name], seed, args.updates) for seed in SEEDS for name in args.rivals]
        work(wanted, args.results / "rare_modes.jsonl", args.jobs)
    if args.verb == "table":
        table(args.results, args.figure, list(RIVALS), PROTOCOL)


if __name__ == "__main__":
    main()
