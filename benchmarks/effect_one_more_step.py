"""What One More Step does to the brightness of a model whose schedule leaks, sampled in few steps; and a signal leak.

    python benchmarks/effect_one_more_step.py                                    seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_one_more_step.py --seeds 0 --steps 20 --psi-steps 20 --images 64                  a look

A world made for it: pictures of Fashion-MNIST at 8x8 of little contrast, each lit by one random brightness, normal
about one of ten levels that the label says, as a prompt says "night". The model predicts v on Stable Diffusion's
schedule; images are by diffusers' DDIM with its leading steps, from the same noise: alone, with psi's guess of what
the label shows, and with a leak drawn from all data. `spread` is that of the metric brightness; `labels` the part of
the labels' differences in brightness that comes out (slope of their means on the data's), `within` the spread about
them; both 1 in the data.
"""

from argparse import Namespace
from collections.abc import Iterator

import torch
from diffusers import DDIMScheduler
from small_worlds import Row, arguments, compared, device, pictures, settings, trained
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.pixels import to_model_range, to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation.brightness import mean_colours, tone
from diffdistill.process import VP
from diffdistill.sampling.one_more_step import OneMoreStep, train_one_more_step
from diffdistill.sampling.signal_leak import fit_leak, leaked
from diffdistill.training.tasks.teacher import TeacherTask, build_network

LEVELS = torch.linspace(-0.5, 0.5, 10)
WITHIN, CONTRAST = 0.2, 0.15


def scheduler(steps: int) -> DDIMScheduler:
    made = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading", prediction_type="v_prediction",
    )  # fmt: skip
    made.set_timesteps(steps)
    return made


def lit(data: ImageSet) -> ImageSet:
    """The world: every picture in a light of its own, about that of its new label."""
    generator = torch.Generator().manual_seed(5)
    x = to_model_range(data.images)
    labels = torch.randint(0, len(LEVELS), (len(x),), generator=generator)
    light = LEVELS[labels] + WITHIN * torch.randn(len(x), generator=generator)
    images = to_uint8(CONTRAST * (x - x.mean((1, 2, 3), keepdim=True)) + light[:, None, None, None])
    return ImageSet(images, labels, None, None, "lit", "0" * 64)


@torch.no_grad()
def drawn(model: Denoiser, start: Tensor, labels: Tensor, steps: int) -> Tensor:
    """uint8 images by DDIM from a start of variance 1."""
    sampler, parts = scheduler(steps), []
    for x, of_part in zip(start.split(16), labels.split(16), strict=True):
        for t in sampler.timesteps:
            x = sampler.step(model.network(x, t, of_part, return_dict=False)[0], t, x).prev_sample
        parts.append(x)
    return to_uint8(torch.cat(parts))


def judged(images: Tensor, labels: Tensor, data: ImageSet) -> Row:
    assert data.labels is not None
    found = tone(mean_colours(data.images), mean_colours(images))
    means, within = [], []
    for light, of in ((mean_colours(data.images)[:, 0], data.labels), (mean_colours(images)[:, 0], labels)):
        groups = [light[of == label] for label in range(len(LEVELS))]
        means.append(torch.stack([group.mean() for group in groups]))
        within.append(torch.stack([group.var() for group in groups]).mean().sqrt())
    real, fake = (value - value.mean() for value in means)
    return {
        "spread": float(found["brightness_spread"]),
        "labels": float((real * fake).sum() / real.square().sum()),
        "within": float(within[1] / within[0]),
    }


def batches(data: ImageSet, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    return (data.draw(256, seed, step) for step in range(steps))


def rows_of(seed: int, options: Namespace, data: ImageSet) -> dict[str, Row]:
    config = settings(seed, options.steps, level={"law": "timestep"}, class_dropout=0.0)
    torch.manual_seed(seed)
    network = build_network(config.network, data.images.shape[1:], len(LEVELS))
    start = Denoiser(network, VP(scheduler(4).alphas_cumprod, "v_prediction"))
    model = trained(TeacherTask(config, data, device(), start))
    torch.manual_seed(seed)
    psi = OneMoreStep(model.image_shape, classes=len(LEVELS))
    train_one_more_step(psi, batches(data, seed, options.psi_steps), options.psi_steps)
    generator = torch.Generator().manual_seed(1000)
    z, noise = (torch.randn(options.images, *model.image_shape, generator=generator) for _ in range(2))
    labels = torch.arange(options.images) % len(LEVELS)
    leak = fit_leak(to_model_range(data.images[:4096])).draw(options.images, generator)
    rows = {}
    for steps in (4, 20):
        sampler = scheduler(steps)
        alpha_bar = float(sampler.alphas_cumprod[int(sampler.timesteps[0])])
        starts = {
            "noise alone": noise,
            "One More Step": psi.start(z, noise, labels, alpha_bar),
            "signal leak": leaked(noise, leak, alpha_bar),
        }
        for name, begun in starts.items():
            rows[f"{name}, {steps} steps"] = judged(drawn(model, begun, labels, steps), labels, data)
    return rows


def main() -> None:
    options = arguments(__doc__, steps=400, psi_steps=300, images=300)
    data = lit(pictures())
    compared(options, lambda seed: rows_of(seed, options, data))


if __name__ == "__main__":
    main()
