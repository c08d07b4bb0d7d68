"""Images from a model: which sampler, which labels, which noise, in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.sampling.corrections import NONE, Corrections, corrected, read_corrections
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.scheduled import (
    EQUIVALENT,
    SCHEDULED,
    Observe,
    Scheduler,
    copies,
    levels_of,
    make_scheduler,
    set_steps,
    solve_scheduled,
)
from diffdistill.sampling.solvers import SOLVERS

# On a CPU the last bits of a convolution depend on how many images share the call, and one pixel in 10^5 then rounds
# to the neighbouring grey level. So there the network is always called with the same number of images. 16 costs 5 % of
# the speed of the best number (32 to 64) and, above all, little when few images are wanted.
CPU_ROWS = 16


@dataclass(frozen=True)
class Plan:
    """A sampling request, checked against the model: the same plan and the same seed give the same images."""

    sampler: str
    steps: int
    levels: tuple[float, ...]  # where the network is called, falling, then 0; a solver of ours may call it twice
    class_labels: tuple[int, ...] | None  # image i has label class_labels[i mod len]; None: unconditional
    guidance_scale: float
    corrections: Corrections = NONE

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
        return corrected(self.sampler, model.process, self.steps, self.levels, self.corrections)

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Labels of the images `indices`, int64 `(B,)`."""
        classes = self.class_labels
        return None if classes is None else torch.tensor([classes[i % len(classes)] for i in indices])


def plan_sampling(
    model: Denoiser,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    class_labels: Sequence[int] | None = None,
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
    labels = _labels(model, class_labels)
    if model.role == "student":
        if guidance_scale not in (None, 1.0):
            raise ConfigError("a student has its teacher's guidance built in; leave out the guidance scale")
        if epsilon_scaling is not None or time_shift_sampler is not None:
            raise ConfigError(
                "epsilon scaling and Time-Shift correct the steps of a sampler, and a student makes its images in its "
                "own few calls; leave them out, or sample the teacher"
            )
        levels = _student_levels(model, steps, sampler)
        return Plan("consistency", len(levels) - 1, levels, labels, 1.0)
    guidance = 1.0 if guidance_scale is None else float(guidance_scale)
    if guidance != 1.0 and (model.null_class is None or labels is None):
        raise ConfigError(
            f"guidance scale {guidance:g} needs a model with a null class (trained with class_dropout); leave it out"
        )
    name = sampler or "heun"
    steps = steps or (SCHEDULED[name] if name in SCHEDULED else SOLVERS[name]).steps
    plan = Plan(name, steps, _levels(model, name, steps), labels, guidance)
    if epsilon_scaling is None and time_shift_sampler is None:
        return plan
    require_steps(name)
    wanted = (name, steps, epsilon_scaling, time_shift_sampler, calibration)
    plan = replace(plan, corrections=read_corrections(model.metadata.get("path"), model.process, *wanted))
    if plan.scheduled:
        plan.scheduler(model)  # refuses what cannot be
    return plan


def require_steps(sampler: str) -> None:
    """ConfigError for a sampler without steps that a correction could act on."""
    if sampler not in EQUIVALENT and sampler not in SCHEDULED:
        raise ConfigError(
            f"sampler '{sampler}' follows no differential equation, so no correction fits it; use another"
        )


def _levels(model: Denoiser, name: str, steps: int) -> tuple[float, ...]:
    """Where a sampler calls the network, then 0; ConfigError for a number of steps it does not have."""
    if name in SOLVERS:
        return tuple(SOLVERS[name].levels(steps, model.sigma_min, model.sigma_max))
    scheduler = make_scheduler(name, model.process)
    fewest, most = SCHEDULED[name].fewest, len(scheduler.betas)
    if not fewest <= steps <= most:
        raise ConfigError(f"steps is {steps}; sampler '{name}' takes {fewest} to {most}")
    set_steps(scheduler, steps)
    return levels_of(scheduler)


def _student_levels(model: Denoiser, steps: int | None, sampler: str | None) -> tuple[float, ...]:
    """All levels the student was trained at, or the first alone, which is a one-step generator too."""
    trained = model.levels
    if sampler not in (None, "consistency"):
        raise ConfigError(
            f"sampler '{sampler}' needs a denoiser at every level, and this model is a student for its own levels; "
            "leave the sampler out, or sample the teacher"
        )
    if steps not in (None, 1, len(trained)):
        allowed = "1 step" if len(trained) == 1 else f"{len(trained)} steps, or 1"
        raise ConfigError(f"steps is {steps} and this student was trained for {allowed}; use that, or distil another")
    return (*trained[: steps or len(trained)], 0.0)


def _labels(model: Denoiser, class_labels: Sequence[int] | None) -> tuple[int, ...] | None:
    count = model.num_classes
    if class_labels is None:
        return None if count is None else tuple(range(count))
    if count is None:
        raise ConfigError("this model is unconditional, it takes no class labels; leave them out")
    wrong = [label for label in class_labels if not 0 <= label < count]
    if wrong or not class_labels:
        given = f"class label {wrong[0]} is out of range" if wrong else "the list of class labels is empty"
        raise ConfigError(f"{given}; this model has classes 0 to {count - 1}")
    return tuple(class_labels)


def generate(
    model: str | Denoiser,
    *,
    num_images: int,
    seed: int = 0,
    batch_size: int = 64,
    steps: int | None = None,
    sampler: str | None = None,
    class_labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    epsilon_scaling: str | None = None,
    time_shift_sampler: str | None = None,
    calibration: str | None = None,
    device: str | torch.device | None = None,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images, uint8 `(b, C, H, W)` on the CPU, and labels, int64 `(b,)` or None for an unconditional model.

    Images `first` to `first + num_images - 1` of `seed`; image i depends on (seed, i) and not on how many others are
    made: its noise has its own generator, its label is i mod num_classes, or the i-th of `class_labels`, which repeat.
    On a CPU it is the same to the last bit for every `batch_size` from 16 on; below that, and on a GPU, up to the
    rounding of the network's arithmetic.

    A student takes its own levels and the sampler `consistency`; a teacher takes `heun` with 18 steps (35 evaluations)
    unless told otherwise, see `SOLVERS` and `SCHEDULED`. `epsilon_scaling` is "auto", "B" or "K,B",
    `time_shift_sampler` "auto" or "WINDOW,CUTOFF", as on the command line; "auto" reads the file `calibration`, or the
    model's own calibration.json. Raises ConfigError before the first image, CheckpointError if `model` names a
    damaged folder.
    """
    if num_images < 1 or batch_size < 1:
        raise ConfigError(f"{num_images} images in batches of {batch_size} were asked for; both must be 1 or more")
    if isinstance(model, str):
        model = Denoiser.from_pretrained(model, pick_device(device))
    elif device is not None:
        model = model.to(device)
    plan = plan_sampling(
        model,
        steps=steps,
        sampler=sampler,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        epsilon_scaling=epsilon_scaling,
        time_shift_sampler=time_shift_sampler,
        calibration=calibration,
    )
    return run_plan(model, plan, num_images=num_images, seed=seed, batch_size=batch_size, first=first)


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device asked for, or the GPU where there is one, else the CPU; ConfigError if this machine lacks it."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= here:
        raise ConfigError(f"device '{name}' is not on this machine; use cpu, or leave it out")
    return device


def run_plan(
    model: Denoiser, plan: Plan, *, num_images: int, seed: int, batch_size: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of `generate` for a plan that is checked."""
    for start in range(first, first + num_images, batch_size):
        indices = range(start, min(start + batch_size, first + num_images))
        labels = plan.labels(indices)
        yield to_uint8(sample_batch(model, plan, seed, indices, labels, batch_size)).cpu(), labels


@torch.inference_mode()
def sample_batch(
    model: Denoiser,
    plan: Plan,
    seed: int,
    indices: Sequence[int],
    labels: Tensor | None,
    batch_size: int,
    observe: Observe | None = None,
) -> Tensor:
    """x0 of the images `indices`, float32 `(B, C, H, W)` on the model's device; dropout is off meanwhile.

    `observe` is shown every state; the plan is then computed by a scheduler, whatever its sampler.
    """
    device = next(model.parameters()).device
    rows = min(batch_size, CPU_ROWS) if device.type == "cpu" else len(indices)
    labels = None if labels is None else labels.to(device)

    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        return torch.cat([_denoise_rows(model, plan, x, sigma, labels, at, rows) for at in range(0, len(x), rows)])

    was_training = model.training
    model.eval()
    try:
        noise = ImageNoise(seed, indices, model.image_shape, device)
        if not plan.scheduled and observe is None:
            return SOLVERS[plan.sampler].solve(denoise, noise, plan.levels)
        scheduler = plan.scheduler(model)
        # Time-Shift looks at the state: with a scheduler an image it cannot see an image's neighbours.
        own = copies(scheduler, len(indices)) if plan.corrections.shifts else [scheduler]
        return solve_scheduled(denoise, noise, own, observe)
    finally:
        model.train(was_training)


def _denoise_rows(
    model: Denoiser, plan: Plan, x: Tensor, sigma: float | Tensor, labels: Tensor | None, at: int, rows: int
) -> Tensor:
    """The denoiser on exactly `rows` images from `at` on; a shorter rest is filled up with copies of the last."""
    here = torch.arange(at, at + rows, device=x.device).clamp(max=len(x) - 1)
    level = sigma[here] if isinstance(sigma, Tensor) else torch.full((rows,), sigma, device=x.device)
    x0 = model.guided(x[here], level, None if labels is None else labels[here], plan.guidance_scale)
    return x0[: len(x) - at]
