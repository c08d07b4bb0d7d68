"""f-distill's and Uni-Instruct's claims on a mixture with rare modes in the plane: recall and mass of each mode.

    python scripts/claims/rare_modes.py tune --jobs 2       learning rates, on seeds 100 to 102
    python scripts/claims/rare_modes.py run --jobs 2        the chosen rates, on seeds 0 to 4
    python scripts/claims/rare_modes.py check               the runs' gradients against the package's own step
    python scripts/claims/rare_modes.py table               docs/claims.json, the tables and the figure

The teacher is the mixture's exact denoiser, the discriminator a perceptron of the point and its level; student and
critic start as one network that has learned the teacher's denoiser. Many runs train at once, each with networks of its
own, so the step is written here once more, from the package's losses, rows and trackers: `check` compares it with
`DistributionMatching`. Results are lines of files; a run that is there already is not made again.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from plane import INPUTS, PROCESS, MixtureTeacher, PointHeads, measures, point_denoisers
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffdistill.config.methods import DMD2, Adversarial, FDistill, Method, SiD, UniInstruct
from diffdistill.config.schema import Level
from diffdistill.denoiser import Denoiser
from diffdistill.level_weights import LevelNormaliser, native_weight
from diffdistill.losses import denoising_loss, discriminator_loss, fisher_loss, score_gap_gradient
from diffdistill.methods import choices_of
from diffdistill.methods.matching import Choices, DistributionMatching
from diffdistill.process import LevelLaw, per_sample
from diffdistill.ratio import RatioTracker
from diffdistill.training.optim import Ema

STEPS, BATCH, CRITIC_UPDATES, WIDTH, SIGMA_INIT = 500, 128, 2, 48, 2.5
START_STEPS, START_BATCH, CRITIC_WARMUP = 1000, 256, 0.05
CRITIC_RATE, HEAD_RATE, WEIGHT = 1e-3, 1e-3, 3e-2
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
TUNING_SEEDS, SEEDS, DRAWN, GROUP = (100, 101, 102), (0, 1, 2, 3, 4), 50_000, 20
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
        found = dataclasses.replace(choices_of(settings), critic_warmup=CRITIC_WARMUP)
        return found if self.normalize is None else dataclasses.replace(found, normalize=self.normalize)

    def tracker(self) -> RatioTracker | None:
        ratio = self.choices().ratio
        if ratio is None:
            return None
        kind = RatioTracker if self.calibrated else Uncalibrated
        return kind(ratio.bins, ratio.decay, ratio.clip, warn_every=10**9)


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


class Adam:
    """Adam without first moment for parameters `(runs, ...)`, each run at its own rate."""

    def __init__(self, parameters: Iterable[nn.Parameter], rates: Sequence[float], decay: float = 0.999):
        self.parameters, self.decay, self.count = list(parameters), decay, 0
        self.rates = torch.tensor(rates)[:, None, None]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        self.count += 1
        for parameter, square in zip(self.parameters, self.squares, strict=True):
            gradient = parameter.grad
            square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
            mean_square = square / (1 - self.decay**self.count)
            parameter.sub_(scale * self.rates * gradient / (mean_square.sqrt() + 1e-8))
            parameter.grad = None


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
    """Several runs of one form at once: each has networks, ratio, normaliser and gradient of its own."""

    def __init__(self, runs: Sequence[Run], begin: dict[int, Tensors]):
        self.runs, count = runs, len(runs)
        self.rows = [RIVALS[run.rival].choices() for run in runs]
        self.teacher, self.heads = MixtureTeacher(), PointHeads(count, WIDTH)
        self.student, self.critic = point_denoisers(count, WIDTH), point_denoisers(count, WIDTH)
        for network in (self.student, self.critic):
            for k, parameter in enumerate(network.parameters()):
                parameter.data.copy_(torch.stack([begin[run.seed][k] for run in runs]))
        self.trackers = [RIVALS[run.rival].tracker() for run in runs]
        self.normalisers = [LevelNormaliser() for _ in runs]
        self.average = Ema(self.student, 0.99)
        self.optimizers = [
            Adam(self.student.parameters(), [run.rate for run in runs]),
            Adam(self.critic.parameters(), [CRITIC_RATE] * count),
            Adam(self.heads.parameters(), [HEAD_RATE] * count),
        ]

    def parts(self) -> list[slice]:
        return [slice(k * BATCH, (k + 1) * BATCH) for k in range(len(self.runs))]

    def logit(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.heads(self.teacher.network.inputs(*PROCESS.to_network(x_t, sigma)))

    def critic_loss(self, x0: Tensor, real: Tensor) -> Tensor:
        """Sum over the runs of the critic's and the discriminator's loss, as in the package's step."""
        _, sigma = levels(len(self.runs))
        prediction = self.critic(noised(x0, sigma), sigma)
        loss = denoising_loss(prediction, x0, sigma, weight=native_weight(PROCESS, sigma)).mean()
        _, sigma = levels(len(self.runs))
        eps = torch.randn_like(torch.cat([real, x0])).chunk(2)
        logits = (self.logit(x + per_sample(sigma, x) * e, sigma) for x, e in zip((real, x0), eps, strict=True))
        loss = loss + discriminator_loss(*logits)
        return len(self.runs) * loss

    def student_gradient(self, x0: Tensor, progress: float) -> Tensor:
        """Of each run by its own row, with the package's losses; `(runs * B, 2, 1, 1)`."""
        x = x0.detach().requires_grad_()
        u, sigma = levels(len(self.runs))
        x_t = noised(x, sigma)
        attached = self.rows[0].form == "fisher"
        with torch.set_grad_enabled(attached):
            teacher_x0, critic_x0 = self.teacher(x_t, sigma), self.critic(x_t, sigma)
        raw = self.logit(x_t, sigma)
        gradient, loss = torch.zeros_like(x0), 0 * raw.sum()
        for part, row, tracker, normaliser in zip(
            self.parts(), self.rows, self.trackers, self.normalisers, strict=True
        ):
            warm = progress < row.fisher_warmup
            inputs = x[part], teacher_x0[part], critic_x0[part]
            settings: dict[str, Any] = {
                "logit": None if tracker is None else tracker(raw[part], u[part]),
                "divergence": "reverse_kl" if warm else row.divergence,
                "level_weight": normaliser(x[part].detach(), teacher_x0[part].detach(), u[part]),
                "normalize": row.normalize,
            }
            if tracker is not None:
                tracker.update(raw[part], u[part])
            if attached:
                alpha = 1.0 if warm else row.alpha
                loss = loss + fisher_loss(*inputs, alpha=alpha, detach_ratio=row.detach_ratio, **settings).sum()
            else:
                gradient[part] = score_gap_gradient(*inputs, **settings)
            if row.adversarial is not None and not warm:
                loss = loss + row.adversarial.weight * x[0].numel() * softplus(-raw[part]).sum()
        return gradient + torch.autograd.grad(loss, x)[0]

    def update(self, step: int, total: int) -> None:
        students, critics, heads = self.optimizers
        x0 = draw(self.student, BATCH)
        for _ in range(CRITIC_UPDATES):
            self.critic_loss(x0.detach(), self.teacher.sample(len(x0))).backward()
            critics.step()
            heads.step()
        progress = step / total
        if progress >= CRITIC_WARMUP:
            x0.backward(self.student_gradient(x0, progress) / (2 * BATCH))
            students.step(min(1.0, 2 * (1 - progress)))
            self.average.update(self.student)


def distil(runs: Sequence[Run], begin: dict[int, Tensors]) -> list[dict[str, Any]]:
    """Train the runs, all of one form, and measure their averaged students."""
    torch.set_num_threads(1)
    torch.manual_seed(sum(run.seed for run in runs))
    began, task = time.time(), Distillation(runs, begin)
    for step in range(STEPS):
        task.update(step, STEPS)
    with torch.no_grad():
        samples = draw(task.average.module, DRAWN).reshape(len(runs), DRAWN, 2)
    seconds = round((time.time() - began) / len(runs), 1)
    return [
        dataclasses.asdict(run) | measures(points) | {"seconds": seconds}
        for run, points in zip(runs, samples, strict=True)
    ]


def check() -> float:
    """Largest difference to the package's step, of the student's gradient and the critic's loss, over all rows."""
    begin, worst = {0: [p.detach() for p in point_denoisers(1, WIDTH).parameters()]}, 0.0
    begin = {0: [p[0] for p in begin[0]]}
    for name, rival in RIVALS.items():
        torch.manual_seed(1)
        here, x0 = Distillation([Run(name, 1e-3, 0)], begin), torch.randn(BATCH, 2, 1, 1)
        for parameter in here.critic.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        method = DistributionMatching(rival.choices(), here.teacher, here.critic, LAW, LAW)
        if method.adversarial is not None:
            method.adversarial.discriminator.heads[0] = here.heads
        if method.ratio is not None:
            method.ratio = rival.tracker()
        real = here.teacher.sample(BATCH) if method.adversarial is not None else None
        pairs = []
        for mine in (True, False):
            torch.manual_seed(2)
            first = here.student_gradient(x0, 0.5) if mine else method.student_gradient(x0, None, 0.5)[0]
            second = here.student_gradient(x0, 0.6) if mine else method.student_gradient(x0, None, 0.6)[0]
            pairs.append(torch.stack([first, second]))
            if real is not None:
                loss = here.critic_loss(x0, real) if mine else method.critic_loss(x0, None, real)[0]
                pairs[-1] = torch.cat([pairs[-1].flatten(), loss.detach()[None]])
        difference = float((pairs[0] - pairs[1]).abs().max() / pairs[1].abs().max())
        print(f"{name}: {difference:.1e}")
        worst = max(worst, difference)
    return worst


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def chosen_rates(results: list[dict[str, Any]]) -> dict[str, float]:
    """Of each rival, the rate with the least mean total variation on the tuning seeds."""
    chosen = {}
    for name in RIVALS:
        scores = {}
        for rate in RATES:
            runs = [r["total_variation"] for r in results if r["rival"] == name and r["rate"] == rate]
            if len(runs) == len(TUNING_SEEDS):
                scores[rate] = mean(runs)
        if scores:
            chosen[name] = min(scores, key=lambda rate: scores[rate])
    return chosen


def work(wanted: Sequence[Run], path: Path, jobs: int) -> None:
    """Make the runs that are not in `path` yet, in groups, and append each group as it ends."""
    done = {(r["rival"], r["rate"], r["seed"]) for r in read(path)}
    runs = [run for run in wanted if (run.rival, run.rate, run.seed) not in done]
    if not runs:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = sorted({run.seed for run in runs})
    begin = dict(zip(seeds, zip(*starts(seeds), strict=True), strict=True))
    groups = [
        group[k : k + GROUP]
        for group in ([r for r in runs if (RIVALS[r.rival].choices().form == "fisher") == f] for f in (True, False))
        for k in range(0, len(group), GROUP)
    ]
    with ProcessPoolExecutor(jobs) as pool, path.open("a") as out:
        for future in as_completed([pool.submit(distil, group, begin) for group in groups]):
            rows = future.result()
            out.write("".join(json.dumps(row) + "\n" for row in rows))
            out.flush()
            print(len(rows), "runs,", rows[0]["seconds"], "s each", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["tune", "run", "check", "table"])
    parser.add_argument("--results", type=Path, default=Path("runs/claims"), help="folder of tune.jsonl and run.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    args = parser.parse_args()
    if args.verb == "check" and not check() < 1e-4:
        raise SystemExit("the runs' step is not the package's")
    tuned = args.results / "rare_modes_tune.jsonl"
    if args.verb == "tune":
        work([Run(name, rate, seed) for seed in TUNING_SEEDS for name in RIVALS for rate in RATES], tuned, args.jobs)
    rates = chosen_rates(read(tuned))
    if args.verb == "run":
        wanted = [Run(name, rates[name], seed) for seed in SEEDS for name in RIVALS]
        work(wanted, args.results / "rare_modes.jsonl", args.jobs)


if __name__ == "__main__":
    main()
