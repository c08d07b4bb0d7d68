"""A sampling request, checked against the model: sampler, levels, what is drawn, corrections."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from diffdistill.data.prompts import given_prompts
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.corrections import NONE, Corrections, read_corrections
from diffdistill.request import Conditions, SamplingRequest
from diffdistill.sampling.leak_file import LeakFile, check_takes_leak, leak_for
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.sampler import SAMPLERS, Sampler
from diffdistill.sampling.scheduled import Scheduler, levels_of, make_scheduler, scheduler_class, set_steps

MOST_STEPS = 10_000  # a typing error above it: no sampler is better for so many


@dataclass(frozen=True)
class Plan:
    """A request, checked against the model: the same plan and the same seed give the same images."""

    sampler: str
    steps: int
    levels: tuple[float, ...]  # where the network is called, falling, then 0; a sampler may call it twice
    conditions: Conditions = field(default_factory=Conditions)
    corrections: Corrections = NONE
    leak: LeakFile | None = None

    @property
    def row(self) -> Sampler:
        return SAMPLERS.get(self.sampler)

    @property
    def scheduled(self) -> bool:
        """Whether a diffusers scheduler computes it: samplers that only diffusers has, and corrected ones."""
        return self.row.run is None or self.corrections != NONE

    @property
    def evaluations(self) -> int:
        """Calls of the network an image takes; guidance doubles the cost of each."""
        return self.row.evaluations(self.steps)

    def torch_seed(self, seed: int, index: int) -> int:
        """Seed of the generator of image `index`.

        From (seed, index); where the prompt has a seed S of its own, from (S, how often it was drawn before).
        """
        return image_seed(*self.conditions.place(seed, index))

    def scheduler(self, model: Denoiser) -> Scheduler:
        """The corrected scheduler of this plan, its steps set; ConfigError for corrections that it cannot take."""
        scheduler = self.corrections.apply(make_scheduler(self.sampler, model.process), self.steps)
        set_steps(scheduler, self.steps, None if self.row.run is None else self.levels)
        return scheduler

    def record(self) -> dict[str, Any]:
        """What made the images, as JSON: with it, a seed and an index, one of them is made again alone."""
        labels = self.conditions.class_labels
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "levels": list(self.levels),
            "guidance_scale": self.conditions.guidance_scale,
            "corrections": self.corrections.record(),
            "signal_leak": None if self.leak is None else self.leak.record(),
            "class_labels": None if labels is None else list(labels),
        }


def plan_sampling(model: Denoiser, request: SamplingRequest | None = None, **settings: Any) -> Plan:
    """Fill in what the request leaves open and refuse what the model cannot do (ConfigError).

    settings: those of a `SamplingRequest`, in its place or to change it.
    """
    request = replace(request or SamplingRequest(), **settings)
    row = None if request.sampler is None else SAMPLERS.get(request.sampler)
    if request.steps is not None and not 1 <= request.steps <= MOST_STEPS:
        raise ConfigError(f"steps is {request.steps}; use 1 to {MOST_STEPS}")
    conditions = model.conditions_for(request)
    if model.role == "student":
        return _few_steps(model, row, request, conditions)
    name = request.sampler or model.default_sampler
    _check_noise(model, name, request)
    steps = request.steps or SAMPLERS.get(name).steps
    leak = None if request.signal_leak is None else leak_for(model, request.signal_leak)
    plan = Plan(name, steps, _levels(model, name, steps), conditions, leak=leak)
    if request.epsilon_scaling is None and request.time_shift_sampler is None:
        return plan
    scheduler_class(name)  # refuses samplers that no correction fits
    flags = (request.epsilon_scaling, request.time_shift_sampler, request.calibration)
    corrections = read_corrections(model.metadata.get("path"), model.process, name, steps, *flags)
    plan = replace(plan, corrections=corrections)
    if plan.scheduled:
        plan.scheduler(model)  # refuses corrections that it cannot take
    return plan


def _check_noise(model: Denoiser, name: str, request: SamplingRequest) -> None:
    """ConfigError for what counts on Gaussian noise, where the model was trained under another."""
    if not model.noise.heavy:
        return
    if SAMPLERS.get(name).stochastic:
        raise ConfigError(
            f"sampler '{name}' draws Gaussian noise on its way, and this model was trained under Student's t noise "
            f"(PFGM++); use one that draws none, such as {model.default_sampler}"
        )
    if request.epsilon_scaling is not None or request.time_shift_sampler is not None:
        raise ConfigError(
            "epsilon scaling and Time-Shift count on the variance of Gaussian noise, and this model was trained under "
            "Student's t noise (PFGM++); leave them out"
        )


def _few_steps(model: Denoiser, row: Sampler | None, request: SamplingRequest, conditions: Conditions) -> Plan:
    """A student's plan: all levels it was trained at, or the first alone, which is a one-step generator too."""
    if request.epsilon_scaling is not None or request.time_shift_sampler is not None:
        raise ConfigError(
            "epsilon scaling and Time-Shift correct the steps of a sampler, and a student makes its images in its "
            "own few calls; leave them out, or sample the teacher"
        )
    if request.signal_leak is not None:
        check_takes_leak(model)
    if row is not None and not row.for_students:
        raise ConfigError(
            f"sampler '{request.sampler}' needs a denoiser at every level, and this model is a student for its own "
            "levels; leave the sampler out, or sample the teacher"
        )
    levels = (*model.few_step_levels(request.steps), 0.0)
    return Plan(request.sampler or model.default_sampler, len(levels) - 1, levels, conditions)


def _levels(model: Denoiser, name: str, steps: int) -> tuple[float, ...]:
    """Where a sampler calls the network, then 0; ConfigError for a number of steps it does not have."""
    row = SAMPLERS.get(name)
    if row.run is not None:
        own = model.pipeline_levels(name, steps)
        return tuple(row.levels(steps, model.sigma_min, model.sigma_max)) if own is None else own
    scheduler = make_scheduler(name, model.process)
    most = len(scheduler.betas)
    if not row.fewest <= steps <= most:
        raise ConfigError(f"steps is {steps}; sampler '{name}' takes {row.fewest} to {most}")
    set_steps(scheduler, steps)
    return levels_of(scheduler)


def request_of(flags: Any) -> SamplingRequest:
    """The request that the flags of `cli/sampling_flags.py`, attributes of `flags`, make.

    Raises DataError for a file of prompts that is none.
    """
    names = [entry.name for entry in fields(SamplingRequest) if entry.name != "prompts"]
    given = {name: getattr(flags, name) for name in names}
    return SamplingRequest(**given, prompts=given_prompts(flags.prompt, flags.prompts))
