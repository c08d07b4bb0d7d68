"""A sampling request, checked against the model: sampler, levels, what is drawn, corrections."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.prompts import Prompt
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.corrections import NONE, Corrections, read_corrections
from diffdistill.pipelines.consistency import schedule_of
from diffdistill.process import Flow
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.scheduled import EQUIVALENT, SCHEDULED, Scheduler, levels_of, make_scheduler, set_steps
from diffdistill.sampling.solvers import SOLVERS
from diffdistill.sampling.wishes import guidance_for, labels_for, prompts_for


@dataclass(frozen=True)
class Plan:
    """A sampling request, checked against the model: the same plan and the same seed give the same images."""

    sampler: str
    steps: int
    levels: tuple[float, ...]  # where the network is called, falling, then 0; a solver of ours may call it twice
    class_labels: tuple[int, ...] | None  # image i has label class_labels[i mod len]; None: no classes
    guidance_scale: float
    corrections: Corrections = NONE
    prompts: tuple[Prompt, ...] | None = None  # image i has prompt prompts[i mod len]; None: the model reads no text

    @property
    def scheduled(self) -> bool:
        """Whether a diffusers scheduler computes it: samplers that only diffusers has, and corrected ones."""
        return self.sampler in SCHEDULED or self.corrections != NONE

    @property
    def evaluations(self) -> int:
        """Calls of the network an image takes; guidance doubles the cost of each."""
        if self.sampler in SCHEDULED:
            return len(self.levels) - 1
        return SOLVERS[self.sampler].evaluations(self.steps)

    def scheduler(self, model: Denoiser) -> Scheduler:
        """The corrected diffusers scheduler of this plan, its steps set."""
        scheduler = self.corrections.apply(make_scheduler(self.sampler, model.process), self.steps)
        # A sampler of ours has levels of its own, which its scheduler then visits.
        set_steps(scheduler, self.steps, None if self.sampler in SCHEDULED else self.levels)
        return scheduler

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Labels of the images `indices`, int64 `(B,)`."""
        classes = self.class_labels
        return None if classes is None else torch.tensor([classes[i % len(classes)] for i in indices])

    def prompt(self, index: int) -> Prompt | None:
        """The prompt of image `index`, None where the model reads none."""
        return None if self.prompts is None else self.prompts[index % len(self.prompts)]

    def torch_seed(self, seed: int, index: int) -> int:
        """Seed of the generator of image `index`.

        From (seed, index); where the prompt has a seed S of its own, from (S, how often it was drawn before).
        """
        prompt = self.prompt(index)
        if prompt is None or prompt.seed is None:
            return image_seed(seed, index)
        assert self.prompts is not None
        return image_seed(prompt.seed, index // len(self.prompts))


def plan_sampling(
    model: Denoiser,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    class_labels: Sequence[int] | None = None,
    prompts: Sequence[str | Prompt] | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    epsilon_scaling: str | None = None,
    time_shift_sampler: str | None = None,
    calibration: str | None = None,
) -> Plan:
    """Fill in what the user left open and refuse what the model cannot do (ConfigError)."""
    names = [*SOLVERS, *SCHEDULED]
    if sampler is not None and sampler not in names:
        raise ConfigError(f"sampler '{sampler}' is unknown; use {', '.join(names)}")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps is {steps}; use 1 or more")
    labels = labels_for(model, class_labels)
    guidance = guidance_for(model, guidance_scale, labels)
    texts = prompts_for(model, prompts, negative_prompt, guidance)
    if model.role == "student":
        if epsilon_scaling is not None or time_shift_sampler is not None:
            raise ConfigError(
                "epsilon scaling and Time-Shift correct the steps of a sampler, and a student makes its images in its "
                "own few calls; leave them out, or sample the teacher"
            )
        levels = _student_levels(model, steps, sampler)
        return Plan("consistency", len(levels) - 1, levels, labels, 1.0, prompts=texts)
    name = sampler or usual_sampler(model)
    steps = steps or (SCHEDULED[name] if name in SCHEDULED else SOLVERS[name]).steps
    plan = Plan(name, steps, _levels(model, name, steps), labels, guidance, prompts=texts)
    if epsilon_scaling is None and time_shift_sampler is None:
        return plan
    require_steps(name)
    wanted = (name, steps, epsilon_scaling, time_shift_sampler, calibration)
    plan = replace(plan, corrections=read_corrections(model.metadata.get("path"), model.process, *wanted))
    if plan.scheduled:
        plan.scheduler(model)  # refuses what cannot be
    return plan


# Above, Karras' levels waste most steps on pure noise: the schedule has (nearly) no signal at its end.
NO_SIGNAL = 1000.0


def usual_sampler(model: Denoiser) -> str:
    """Of a teacher: EDM's Heun for pixels; for texts, where guidance doubles every call, one call a step."""
    if model.prompts is None:
        return "heun"
    if isinstance(model.process, Flow):
        return "flow_euler"
    return "deis" if model.sigma_max > NO_SIGNAL else "dpm_solver"


def require_steps(sampler: str) -> None:
    """ConfigError for a sampler without steps that a correction could act on."""
    if sampler not in EQUIVALENT and sampler not in SCHEDULED:
        raise ConfigError(
            f"sampler '{sampler}' follows no differential equation, so no correction fits it; use another"
        )


def _levels(model: Denoiser, name: str, steps: int) -> tuple[float, ...]:
    """Where a sampler calls the network, then 0; ConfigError for a number of steps it does not have."""
    if name == "flow_euler" and model.prompts is not None and isinstance(model.process, Flow):
        return _pipeline_levels(model, steps)
    if name in SOLVERS:
        return tuple(SOLVERS[name].levels(steps, model.sigma_min, model.sigma_max))
    scheduler = make_scheduler(name, model.process)
    fewest, most = SCHEDULED[name].fewest, len(scheduler.betas)
    if not fewest <= steps <= most:
        raise ConfigError(f"steps is {steps}; sampler '{name}' takes {fewest} to {most}")
    set_steps(scheduler, steps)
    return levels_of(scheduler)


def _pipeline_levels(model: Denoiser, steps: int) -> tuple[float, ...]:
    """The levels that the flow's stock pipeline visits, shifted as it is at this size of image; the first is t = 1."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    adapter: Any = model.adapter
    assert isinstance(model.process, Flow)
    settings = dict(adapter.scheduler.config) | {"shift": adapter.shift(), "use_dynamic_shifting": False}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    scheduler.set_timesteps(steps, sigmas=adapter.default_sigmas(steps))
    return (*model.process.level_at(scheduler.timesteps).tolist(), 0.0)


def _student_levels(model: Denoiser, steps: int | None, sampler: str | None) -> tuple[float, ...]:
    """All levels the student was trained at, or the first alone, which is a one-step generator too.

    A consistency model of others has any number of steps, at the levels of its own scheduler.
    """
    trained, own = model.levels, schedule_of(model)
    if sampler not in (None, "consistency"):
        raise ConfigError(
            f"sampler '{sampler}' needs a denoiser at every level, and this model is a student for its own levels; "
            "leave the sampler out, or sample the teacher"
        )
    if own is not None:
        return (*own.levels(steps or 1), 0.0)
    if steps not in (None, 1, len(trained)):
        allowed = "1 step" if len(trained) == 1 else f"{len(trained)} steps, or 1"
        raise ConfigError(f"steps is {steps} and this student was trained for {allowed}; use that, or distil another")
    return (*trained[: steps or len(trained)], 0.0)
