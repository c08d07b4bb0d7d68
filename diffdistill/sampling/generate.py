"""Images from a model: which noise, in which batches, through the network and to pixels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffdistill.data.pixels import to_uint8
from diffdistill.data.prompts import Prompt
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.consistency import schedule_of
from diffdistill.process import EDM
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.plan import Plan, plan_sampling, require_steps
from diffdistill.sampling.scheduled import Observe, copies, solve_scheduled
from diffdistill.sampling.solvers import SOLVERS, Solve, consistency, renoise

__all__ = ["Plan", "generate", "pick_device", "plan_sampling", "require_steps", "run_plan", "sample_batch"]

# On a CPU the last bits of a convolution depend on how many images share the call, and one pixel in 10^5 then rounds
# to the neighbouring grey level. So there the network is always called with the same number of images. 16 costs 5 % of
# the speed of the best number (32 to 64) and, above all, little when few images are wanted.
CPU_ROWS = 16
# Of latents so many places go through the network at a time: 16 images of 8x8 to 16x16 or one of 64x64 on a CPU, which
# the large ones keep busy alone; 32 of 64x64 or 8 of 128x128 on an accelerator, whose memory they fill.
LATENT_PLACES = {"cpu": 1 << 12, "other": 1 << 17}
# A decoder's activations take some 10 kB a pixel: one image of 512x512 at a time on a CPU, four on an accelerator.
DECODED_PIXELS = {"cpu": 1 << 16, "other": 1 << 20}


def generate(
    model: str | Path | Denoiser,
    *,
    num_images: int,
    seed: int = 0,
    batch_size: int = 64,
    steps: int | None = None,
    sampler: str | None = None,
    class_labels: Sequence[int] | None = None,
    prompts: Sequence[str | Prompt] | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    epsilon_scaling: str | None = None,
    time_shift_sampler: str | None = None,
    calibration: str | None = None,
    device: str | torch.device | None = None,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images, uint8 `(b, C, H, W)` on the CPU, and labels, int64 `(b,)` or None where there are no classes.

    Images `first` to `first + num_images - 1` of `seed`; image i depends on (seed, i) and not on how many others are
    made: its noise has its own generator, its label is i mod num_classes, or the i-th of `class_labels`, which repeat.
    On a CPU it is the same to the last bit for every `batch_size` from 16 on; below that, and on a GPU, up to the
    rounding of the network's arithmetic.

    A text-to-image model draws the i-th of `prompts`, which repeat; a prompt with a seed has its noise from that one.

    A student takes its own levels and the sampler `consistency`; a teacher takes `heun` with 18 steps (35 evaluations)
    unless told otherwise, see `SOLVERS` and `SCHEDULED`. `epsilon_scaling` is "auto", "B" or "K,B",
    `time_shift_sampler` "auto" or "WINDOW,CUTOFF", as on the command line; "auto" reads the file `calibration`, or the
    model's own calibration.json. Raises ConfigError before the first image, CheckpointError if `model` names a
    damaged folder.
    """
    if num_images < 1 or batch_size < 1:
        raise ConfigError(f"{num_images} images in batches of {batch_size} were asked for; both must be 1 or more")
    if isinstance(model, str | Path):
        model = Denoiser.from_pretrained(model, pick_device(device))
    elif device is not None:
        model = model.to(device)
    plan = plan_sampling(
        model,
        steps=steps,
        sampler=sampler,
        class_labels=class_labels,
        prompts=prompts,
        negative_prompt=negative_prompt,
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
    """Images `indices`, float32 `(B, C, H, W)` in about [-1, 1] on the model's device; dropout is off meanwhile.

    labels: `plan.labels(indices)`. `observe` is shown every state; the plan is then computed by a scheduler, whatever
    its sampler.
    """
    was_training = model.training
    model.eval()
    try:
        x0 = _solve(model, plan, seed, indices, labels, batch_size, observe)
        return x0 if model.prompts is None else _decoded(model, x0, batch_size)
    finally:
        model.train(was_training)


def _solve(
    model: Denoiser,
    plan: Plan,
    seed: int,
    indices: Sequence[int],
    labels: Tensor | None,
    batch_size: int,
    observe: Observe | None,
) -> Tensor:
    """x0 as the network knows it: pixels or latents."""
    device = next(model.parameters()).device
    rows = _network_rows(model, device, len(indices), batch_size)
    cond, null = _conditions(model, plan, indices, None if labels is None else labels.to(device))

    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        def some(here: Tensor) -> Tensor:
            level = sigma[here] if isinstance(sigma, Tensor) else torch.full((rows,), sigma, device=device)
            c, n = (None if value is None else value[here] for value in (cond, null))
            return model.guided(x[here], level, c, plan.guidance_scale, n)

        return _by_rows(some, len(x), rows, device)

    seeds = [plan.torch_seed(seed, i) for i in indices]
    noise = ImageNoise(seed, indices, model.image_shape, device, seeds, start_of(model, plan.levels[0]))
    if not plan.scheduled and observe is None:
        solve = SOLVERS[plan.sampler].solve
        return (few_steps(model) if solve is consistency else solve)(denoise, noise, plan.levels)
    scheduler = plan.scheduler(model)
    # Time-Shift looks at the state: with a scheduler an image it cannot see an image's neighbours.
    own = copies(scheduler, len(indices)) if plan.corrections.shifts else [scheduler]
    return solve_scheduled(denoise, noise, own, observe)


def few_steps(model: Denoiser) -> Solve:
    """The solver `consistency` as this model has it: on latents, which have no bounds, or above its own boundary."""
    if model.prompts is not None:
        return partial(renoise, arrange=model.adapter.arrange)
    boundary = model.process.boundary if isinstance(model.process, EDM) else 0.0
    own = schedule_of(model)
    if own is None:
        return partial(consistency, boundary=boundary)
    return partial(consistency, boundary=boundary, s_noise=own.s_noise, clip=own.clip_denoised)


def start_of(model: Denoiser, sigma: float) -> float:
    """Factor of sigma z, where a sampler starts. Stock text-to-image pipelines and students of networks with training
    steps show the network z, of variance 1.
    """
    return 1.0 if model.prompts is None and model.role != "student" else model.process.start_scale(sigma) / sigma


def _network_rows(model: Denoiser, device: torch.device, count: int, batch_size: int) -> int:
    """How many images go through the network at a time; on a CPU the same number whatever the batch, from 16 on."""
    most = min(batch_size, CPU_ROWS) if device.type == "cpu" else count
    return most if model.prompts is None else min(most, _fitting(LATENT_PLACES, device, model.image_shape))


def _fitting(budget: dict[str, int], device: torch.device, shape: tuple[int, int, int]) -> int:
    return max(1, budget.get(device.type, budget["other"]) // (shape[1] * shape[2]))


def _conditions(
    model: Denoiser, plan: Plan, indices: Sequence[int], labels: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What each image is drawn of, and where guidance leads away from; None for the model's own null condition."""
    if plan.prompts is None:
        return labels, None
    prompts = [plan.prompts[i % len(plan.prompts)] for i in indices]
    negatives = {row: prompt.negative for row, prompt in enumerate(prompts) if prompt.negative is not None}
    device = next(model.parameters()).device
    # What is encoded here is kept, and a training may take gradients at it, which tensors of inference mode refuse.
    with torch.inference_mode(False), torch.no_grad():
        cond = model.prompts.ids([prompt.text for prompt in prompts]).to(device)
        if not negatives:
            return cond, None
        null = model.null_condition(cond).clone()
        null[list(negatives)] = model.prompts.ids(list(negatives.values())).to(device)
        return cond, null


def _decoded(model: Denoiser, latents: Tensor, batch_size: int) -> Tensor:
    """Images of latents, a few at a time: a decoder's activations take more memory than all else."""
    rows = min(CPU_ROWS, batch_size, _fitting(DECODED_PIXELS, latents.device, model.picture_shape))
    return _by_rows(lambda at: model.decode(latents[at]).float(), len(latents), rows, latents.device)


def _by_rows(call: Callable[[Tensor], Tensor], count: int, rows: int, device: torch.device) -> Tensor:
    """`call` on the indices of exactly `rows` images at a time; a shorter rest is filled up with its last."""
    parts = []
    for at in range(0, count, rows):
        here = torch.arange(at, at + rows, device=device).clamp(max=count - 1)
        parts.append(call(here)[: count - at])
    return torch.cat(parts)
