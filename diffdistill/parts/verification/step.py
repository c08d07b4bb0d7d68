"""The production step in worlds where its mean is known: exact networks, and nodes of a quadrature in place of noise.

Exact denoisers are dressed as networks of diffusers, so that the production `Denoiser` is in the loop.

Two worlds. In the first an image's pixels are the nodes of (z, eps), and each image has a level of its own: what is a
mean over pixels in the step (DMD's normaliser, the pseudo-Huber norm) is then an expectation, as it is for images of
many independent pixels. Pixels are Gaussian, so every integrand is of second degree and a few equal nodes are exact.
In the second an image is one pixel and a node, so that its density ratio is its own, and the teacher is a mixture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffdistill.denoiser import Denoiser
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.base import Adversarial, Method
from diffdistill.parts.verification.analytic import Mixture, Nodes
from diffdistill.process import EDM, VP, Flow, Level, LevelLaw, Process, per_sample
from diffdistill.rewards.term import RewardTerm

TAP = "log_ratio"
EYES = Adversarial(taps=(TAP,))


class GivenNoise(TorchFunctionMode):
    """Within, what `torch.randn_like` draws is given."""

    def __init__(self, eps: Tensor):
        super().__init__()
        self.eps = eps

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.randn_like:
            return self.eps.to(args[0]).reshape(args[0].shape)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class GivenLevels(LevelLaw):
    """A level law whose draw is given: u `(count,)`, in order."""

    u: Tensor = field(default_factory=lambda: torch.zeros(0))

    def draw(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        assert count == len(self.u)
        return self.u, self.sigma(self.u)


class OracleNetwork(nn.Module):
    """The network that a process would need to be exact for p(x0 | class), one mixture a class.

    It is called as diffusers networks are, with the scaled input and the process' own time, from which it has to find
    x_t and sigma again, and answers in the process' own prediction type.
    """

    def __init__(self, classes: list[Mixture], process: Process):
        super().__init__()
        self.classes, self.process = classes, process
        self.dtype_of_weights = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(
        self, x_in: Tensor, time: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        sigma = level_of(self.process, time)
        x = x_in * per_sample(input_scale(self.process, sigma), x_in)
        self.answered(x, sigma)
        labels = torch.zeros(len(x), dtype=torch.long) if class_labels is None else class_labels
        answers = torch.stack([oracle(x, sigma) for oracle in self.classes])
        return (self.process.from_x0(answers[labels, torch.arange(len(x))], x, sigma),)

    def answered(self, x: Tensor, sigma: Tensor) -> None:
        """Called with what the network was found to be asked, before it answers."""


def level_of(process: Process, time: Tensor) -> Tensor:
    """sigma from the network's time argument."""
    if isinstance(process, EDM):
        return (time / (0.25 * process.time_scale)).exp()
    if isinstance(process, Flow):
        t = time / process.time_scale
        return t / (1 - t)
    below = time.long().clamp(0, len(process.log_sigmas) - 2)
    table = process.log_sigmas.to(time)
    return (table[below] + (time - below) * (table[below + 1] - table[below])).exp()


def input_scale(process: Process, sigma: Tensor) -> Tensor:
    """x_t over the network's input."""
    if isinstance(process, EDM):
        return (sigma**2 + process.sigma_data**2).sqrt()
    return (1 + sigma**2).sqrt() if isinstance(process, VP) else 1 + sigma


def processes() -> dict[str, Process]:
    # Stable Diffusion's schedule: beta is linear in its root from 0.00085 to 0.012.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas_cumprod = (1 - betas).cumprod(0)
    kinds = ("epsilon", "v_prediction", "sample")
    return {"EDM": EDM(), "flow": Flow(), **{f"VP, {kind}": VP(alphas_cumprod, kind) for kind in kinds}}


class LogRatio(nn.Module):
    """The feature that an ideal head reads: log p / q at x_t, `(B, 1, 1, 1)`, the mean over pixels."""

    def __init__(self, teacher: Mixture, student: Mixture):
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        log_ratio = self.teacher.log_density(x, sigma) - self.student.log_density(x, sigma)
        return (log_ratio / x[0].numel()).reshape(-1, 1, 1, 1)


class StepNetwork(OracleNetwork):
    """An exact network that the step can take for one of diffusers', with the log ratio as a layer to tap."""

    def __init__(self, classes: list[Mixture], process: Process, shape: Sequence[int], ratio: LogRatio):
        super().__init__(classes, process)
        count = len(classes) if len(classes) > 1 else None
        self.config = SimpleNamespace(in_channels=shape[0], sample_size=tuple(shape[1:]), num_class_embeds=count)
        self.log_ratio = ratio

    def answered(self, x: Tensor, sigma: Tensor) -> None:
        self.log_ratio(x, sigma)


@dataclass(frozen=True)
class Step:
    """One row of the method table with exact networks. teacher: a mixture a class, the last of several the null one;
    student: of its images and of the critic.
    """

    settings: Method
    teacher: Sequence[Mixture]
    student: Mixture
    law: LevelLaw
    process: Process = field(default_factory=EDM)
    reward: RewardTerm | None = None

    def method(self, shape: Sequence[int]) -> DistributionMatching:
        """With heads that say exactly the log ratio."""
        classes = list(self.teacher)
        null = len(classes) - 1 if len(classes) > 1 else None
        ratio = LogRatio(classes[0], self.student)
        teacher = Denoiser(StepNetwork(classes, self.process, shape, ratio), self.process, null_class=null)
        critic = Denoiser(StepNetwork([self.student], self.process, shape, ratio), self.process)
        method = DistributionMatching(self.settings.choices(), teacher, critic, self.law, self.law)
        if method.adversarial is not None:
            say_the_feature(method)
        return method

    def gradient(self, x0: Tensor, eps: Tensor, part_size: int | None = None) -> Tensor:
        """What `student_gradient` returns after any warm-up, `(B, C, H, W)`, float64; `eps` as noise."""
        method = self.method(x0.shape[1:])
        method.reward = self.reward
        cond = None if len(self.teacher) == 1 else torch.zeros(len(x0), dtype=torch.long)
        with GivenNoise(eps.float()):
            gradient, _ = method.student_gradient(x0.float(), cond, 1.0, part_size=part_size)
        return gradient.double()


def say_the_feature(method: DistributionMatching, slope: float = 1.0) -> None:
    """Heads of one number, l = slope f."""
    assert method.adversarial is not None
    with torch.no_grad():
        for head in method.adversarial.discriminator.heads:
            layer: Any = head
            layer[0].weight.fill_(slope)
            layer[0].bias.zero_()


def normal_nodes(count: int) -> Tensor:
    """`count` equally likely nodes of N(0, 1), with its mean and variance exactly."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    nodes = torch.special.ndtri(u)
    return nodes / nodes.square().mean().sqrt()


@dataclass(frozen=True)
class Pixels:
    """The first world: `levels` images of side x side pixels, z along the rows and eps along the columns."""

    mean: float
    scale: float
    levels: int = 6
    side: int = 9

    @property
    def z(self) -> Tensor:
        return normal_nodes(self.side)[:, None].expand(self.levels, 1, self.side, self.side)

    @property
    def eps(self) -> Tensor:
        return normal_nodes(self.side)[None, :].expand(self.levels, 1, self.side, self.side)

    @property
    def x0(self) -> Tensor:
        return self.mean + self.scale * self.z

    def law(self) -> GivenLevels:
        """Karras' law at the middles of equal cells of u."""
        u = (torch.arange(self.levels, dtype=torch.float64) + 0.5) / self.levels
        return GivenLevels(Level(law="karras", u_max=0.8), u=u)

    def expected(self, step: Step, part_size: int | None = None) -> tuple[float, float]:
        """(d/dm, d/ds), the mean over levels and pixels."""
        gradient = step.gradient(self.x0, self.eps, part_size)
        return float(gradient.mean()), float((gradient * self.z).mean())


def at_nodes(step: Step, mean: float, scale: float, nodes: Nodes) -> tuple[float, float]:
    """(d/dm, d/ds) in the second world: every node an image of one pixel."""
    x0 = (mean + scale * nodes.z).reshape(-1, 1, 1, 1)
    gradient = step.gradient(x0, nodes.eps).flatten()
    return float((nodes.weight * gradient).sum()), float((nodes.weight * gradient * nodes.z).sum())
