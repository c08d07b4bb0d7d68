"""Images from a model: which noise, in which batches, through the network and to pixels."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.devices import pick_device
from diffdistill.errors import ConfigError
from diffdistill.machine import send
from diffdistill.request import SamplingRequest
from diffdistill.sampling.noise import ImageNoise, leak_seed
from diffdistill.sampling.plan import Plan, plan_sampling
from diffdistill.sampling.sampler import Denoise
from diffdistill.sampling.scheduled import DenoiseAt, Observe, solve_scheduled

# On a CPU the last bits of a convolution depend on how many images share the call, and one pixel in 10^5 then rounds
# to the neighbouring grey level. So there the network is always called with the same number of images. 16 costs 5 % of
# the speed of the best number (32 to 64) and, above all, little when few images are wanted.
CPU_ROWS = 16


def generate(
    model: str | Path | Denoiser,
    *,
    num_images: int,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    first: int = 0,
    request: SamplingRequest | None = None,
    **settings: Any,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images, uint8 `(b, C, H, W)` on the CPU, and labels, int64 `(b,)` or None where there are no classes.

    Images `first` to `first + num_images - 1` of `seed`; image i depends on (seed, i) and not on how many others are
    made: its noise has its own generator, its label is i mod num_classes, or the i-th of `class_labels`, which repeat.
    On a CPU it is the same to the last bit for every `batch_size` from 16 on; below that, and on a GPU, up to the
    rounding of the network's arithmetic.

    dtype: what a model that is read here is held and computed in; None: float32 (`load_model`). settings: those of a
    `SamplingRequest`, in place of `request` or to change it. Left open, a student takes its own
    levels and the sampler `consistency`, a teacher `heun` with 18 steps (35 evaluations), or what its pipeline has.
    Raises ConfigError before the first image, CheckpointError if `model` names a damaged folder.
    """
    if num_images < 1 or batch_size < 1:
        raise ConfigError(f"{num_images} images in batches of {batch_size} were asked for; both must be 1 or more")
    model = opened(model, device, dtype)
    plan = plan_sampling(model, request, **settings)
    return run_plan(model, plan, num_images=num_images, seed=seed, batch_size=batch_size, first=first)


def opened(model: str | Path | Denoiser, device: str | torch.device | None, dtype: str | None) -> Denoiser:
    """The model on the device, read in a precision where it is not loaded yet; ConfigError for one where it is."""
    if not isinstance(model, Denoiser):
        return Denoiser.from_pretrained(model, pick_device(device), dtype)
    if dtype is not None:
        raise ConfigError(
            f"dtype '{dtype:.40}' is of a model that is read from its folder, and this one is loaded already; load it "
            f"with load_model(..., dtype=...), or leave it out"
        )
    return model if device is None else model.to(pick_device(device))


def run_plan(
    model: Denoiser, plan: Plan, *, num_images: int, seed: int, batch_size: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of `generate` for a plan that is checked."""
    return _run_plan(model, plan, map, num_images=num_images, seed=seed, batch_size=batch_size, first=first)


def run_shared(
    model: Denoiser, plan: Plan, *, num_images: int, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The same batches, of which several processes draw one in turn; each of them is handed all."""
    return _run_plan(model, plan, processes.in_turn, num_images=num_images, seed=seed, batch_size=batch_size, first=0)


def _run_plan(
    model: Denoiser, plan: Plan, each: Any, *, num_images: int, seed: int, batch_size: int, first: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    end = first + num_images
    batches = [range(start, min(start + batch_size, end)) for start in range(first, end, batch_size)]

    def draw(indices: range) -> dict[str, Tensor]:
        x = sample_batch(model, plan, seed, indices, batch_size)
        check_range(model, x)
        return {"images": to_uint8(x).cpu()}

    for indices, drawn in zip(batches, each(draw, batches), strict=True):
        yield drawn["images"], plan.conditions.labels(indices)


def check_range(model: Denoiser, x: Tensor) -> None:
    """ConfigError where images of a model in float16 are not finite: they would be black, without a word."""
    if "float16" in model.dtypes.values() and not bool(x.isfinite().all()):
        raise ConfigError(
            "the model's numbers leave the range of float16, so its images are NaN; use --dtype bfloat16, which has "
            "that of float32, or float32"
        )


@torch.inference_mode()
def sample_batch(
    model: Denoiser,
    plan: Plan,
    seed: int,
    indices: Sequence[int],
    batch_size: int,
    observe: Observe | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Images `indices`, float32 `(B, C, H, W)` in about [-1, 1] on the model's device; dropout is off meanwhile.

    `observe` is shown every state; the plan is then computed by a scheduler, whatever its sampler. start: standard
    normal noise on the CPU that sampling starts with in place of the images' own.
    """
    was_training, device = model.training, model.device
    model.eval()
    try:
        most = min(batch_size, CPU_ROWS) if device.type == "cpu" else len(indices)
        denoise = _in_parts(model, plan, indices, min(most, model.network_rows(device)))
        seeds = [plan.torch_seed(seed, i) for i in indices]
        scale, signal = _start(model, plan, seeds)
        noise = ImageNoise(
            seed, indices, model.image_shape, device, seeds, start=scale, signal=signal, first=start, law=model.noise
        )
        if plan.scheduled or observe is not None:
            x0 = _by_scheduler(model, plan, denoise, noise, observe)
        else:
            x0 = _by_sampler(model, plan, denoise, noise)
        # A decoder's activations take more memory than all else, so a few images at a time.
        rows = min(CPU_ROWS, batch_size, model.decoder_rows(device))
        return _by_rows(lambda chosen: model.decode(_picked(x0, chosen)).float(), len(x0), rows)
    finally:
        model.train(was_training)


def _start(model: Denoiser, plan: Plan, seeds: Sequence[int]) -> tuple[float, Tensor | None]:
    """What an image's first state is made of, in units of the first level: a factor of noise and, with a leak, signal.

    With one it is leak + sigma z, as in training; without one it is what the stock pipeline begins with.
    """
    if plan.leak is None:
        return model.start_scale(plan.levels[0]), None
    return 1.0, plan.leak.law.of_images([leak_seed(seed) for seed in seeds]) / plan.levels[0]


def _in_parts(model: Denoiser, plan: Plan, indices: Sequence[int], rows: int) -> DenoiseAt:
    """The guided denoiser of the images `indices`, called with exactly `rows` of them at a time."""
    cond, null = plan.conditions.tensors(model, indices)
    device = model.device

    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        def part(chosen: Tensor) -> Tensor:
            level = _picked(sigma, chosen) if isinstance(sigma, Tensor) else torch.full((rows,), sigma, device=device)
            c, n = (None if value is None else _picked(value, chosen) for value in (cond, null))
            return model.guided(_picked(x, chosen), level, c, plan.conditions.guidance_scale, n)

        return _by_rows(part, len(x), rows)

    return denoise


def _by_sampler(model: Denoiser, plan: Plan, denoise: Denoise, noise: ImageNoise) -> Tensor:
    """x0 as the network knows it, pixels or latents, by a sampler of the table."""
    run = plan.row.run
    assert run is not None
    own = model.few_step_settings if plan.row.for_students else {}
    return run(denoise, noise.draw() * plan.levels[0], plan.levels, noise.draw, **own)


def _by_scheduler(
    model: Denoiser, plan: Plan, denoise: DenoiseAt, noise: ImageNoise, observe: Observe | None
) -> Tensor:
    """The same by a scheduler of diffusers."""
    scheduler = plan.scheduler(model)
    # Time-Shift looks at the state: with a scheduler an image it cannot see an image's neighbours.
    schedulers = [copy.deepcopy(scheduler) for _ in noise.seeds] if plan.corrections.shifts else [scheduler]
    return solve_scheduled(denoise, noise, schedulers, observe)


def _picked(values: Tensor, chosen: Tensor) -> Tensor:
    """Those rows; an index that is already on their device, or on its way, stops nobody."""
    return values[send(chosen, values.device)]


def _by_rows(call: Callable[[Tensor], Tensor], count: int, rows: int) -> Tensor:
    """`call` on the indices of exactly `rows` images at a time; a shorter rest is filled up with its last."""
    parts = []
    for at in range(0, count, rows):
        chosen = torch.arange(at, at + rows).clamp(max=count - 1)
        parts.append(call(chosen)[: count - at])
    return torch.cat(parts)
