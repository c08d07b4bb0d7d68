"""One guarded parameter update, its rate schedule, and the moving average."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.errors import NonFiniteError
from diffdistill.matching.micro_batches import Metrics
from diffdistill.optimizers import Muon, Optimizer
from diffdistill.registry import is_plugin, load, named
from diffdistill.sharding import is_sharded, local

NEVER, BROKEN = -1, "/broken_at"


class Updater:
    """AdamW, Adafactor or Muon: a stateless rate schedule, clipping, and a finite check before the weights move.

    The rate is a function of the step alone, so resuming needs only the moments: they and the step count live in
    `optimizer.state`. On an accelerator the host does not wait for the check's answer: the first step that failed it
    is noted there (`broken`) and handed on with the figures, and whoever reads them raises (`observers.finite`).
    """

    def __init__(self, name: str, parameters: Iterable[nn.Parameter], settings: Optimizer | Muon, total_steps: int):
        self.name = name
        self.settings = settings
        self.broken: Tensor | None = None
        self.total_steps = total_steps
        self.parameters = [p for p in parameters if p.requires_grad]
        build = load(settings.builder) if is_plugin(settings.builder) else named(settings.builder)
        self.optimizer: torch.optim.Optimizer = build(self.parameters, settings)

    def rate(self, step: int) -> float:
        """Learning rate at `step`: linear warm-up, then constant until `decay_from`, then down to zero at the end.

        While it warms up it does not decay, so the first steps do not depend on the length of the run.
        """
        s = self.settings
        warm = min(1.0, (step + 1) / s.warmup_steps) if s.warmup_steps else 1.0
        start = max(s.warmup_steps, s.decay_from * self.total_steps)
        part = (step - start) / max(self.total_steps - start, 1)
        part = min(max(part, 0.0), 1.0)
        decay = {"constant": 1.0, "linear": 1 - part, "cosine": 0.5 * (1 + math.cos(math.pi * part))}[s.schedule]
        return s.learning_rate * warm * decay

    def begin(self, step: int) -> None:
        """Before the backward passes of `step`."""

    def step(self, step: int) -> Metrics:
        """Clip, check, update, clear. On the CPU NonFiniteError, before any weight moves, if the gradient is not
        finite; elsewhere that is noted.
        """
        processes.sum_gradients(self.parameters)
        norm = total_norm(self.parameters)
        self.require_finite(norm, step)
        if self.settings.max_grad_norm is not None:
            clip(self.parameters, self.settings.max_grad_norm, norm)
        self.set_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.figures(norm, step)

    def set_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)

    def require_finite(self, norm: Tensor, step: int) -> None:
        finite = torch.isfinite(norm)
        if norm.device.type != "cpu":
            before = torch.full_like(finite, NEVER, dtype=torch.int64) if self.broken is None else self.broken
            self.broken = torch.where(finite | (before != NEVER), before, step)
        elif not finite:
            raise processes.together_told(not_finite(self.name, step))  # the norm is that of all

    def figures(self, norm: Tensor, step: int) -> Metrics:
        note: Metrics = {} if self.broken is None else {f"{self.name}{BROKEN}": self.broken}
        return {f"{self.name}/grad_norm": norm, f"{self.name}/learning_rate": self.rate(step), **note}


def not_finite(name: str, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"the gradient of the {name} is not finite at step {step}; lower its learning_rate or use mixed_precision=no"
    )


def notes_of(metrics: Metrics) -> Metrics:
    """Of the figures of a step those that note on the device when a gradient was first not finite, if ever."""
    return {name: value for name, value in metrics.items() if name.endswith(BROKEN)}


def require_unbroken(values: dict[str, float]) -> None:
    """NonFiniteError for the first step that one of the notes, which are read now, names."""
    if bad := [(step, name) for name, step in values.items() if name.endswith(BROKEN) and step != NEVER]:
        step, name = min(bad)
        raise not_finite(name.removesuffix(BROKEN), int(step))


def total_norm(weights: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients, those that are sharded included: of them every process holds a part."""
    by_kind: dict[bool, list[Tensor]] = {True: [], False: []}
    for weight in weights:
        if weight.grad is not None:
            by_kind[is_sharded(weight)].append(local(weight.grad))
    norm = nn.utils.get_total_norm(by_kind[False])
    if not by_kind[True]:
        return norm
    mine = nn.utils.get_total_norm(by_kind[True]).double().square()
    return (processes.total(mine) + norm.to(mine).square()).sqrt().float()


def clip(weights: Iterable[nn.Parameter], most: float, norm: Tensor) -> None:
    """torch's own for gradients of this total norm, of sharded weights the part that is here."""
    grads = [local(weight.grad) for weight in weights if weight.grad is not None]
    torch._foreach_mul_(grads, (most / (norm.to(grads[0].device) + 1e-6)).clamp(max=1.0))


class Ema(nn.Module):
    """Exponential moving average of a module's parameters, float32, with a warm-up of its decay.

    At update n the decay is min(decay, (1 + n) / (10 + n)): a short run averages its last tenth, not its start. That
    is a part of the run and no number of steps, so it is the same for every batch, but for the first ten steps.
    """

    def __init__(self, module: nn.Module, decay: float, copied: Callable[[nn.Module], nn.Module] = copy.deepcopy):
        super().__init__()
        self.decay = decay
        self.module: Any = copied(module).requires_grad_(False).eval()
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n))
        average, weights = ([local(weight) for weight in one.parameters()] for one in (self.module, module))
        torch._foreach_lerp_(average, weights, 1 - decay)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1
