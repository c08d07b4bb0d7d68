"""The latents of one image, as this package draws them and as stock diffusers does."""

import json

import torch
from diffusers import DiffusionPipeline

from diffdistill.pipelines.text.adapters.flux import unpack
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.samplers.consistency import consistency

SEED = 5


def ours(student, prompt):
    """Latents of image 0 of `SEED`, as `diffdistill sample` makes them."""
    ids = student.prompts.ids([prompt])
    first = student.levels[0]
    noise = ImageNoise(SEED, [0], student.image_shape, start=student.start_scale(first))
    with torch.no_grad():
        return consistency(
            lambda x, sigma: student(x, torch.full((1,), sigma), ids),
            noise.draw() * first,
            (*student.levels, 0.0),
            noise.draw,
            **student.few_step_settings,
        ), noise.seeds[0]


def stock(folder, prompt, seed, **more):
    """Latents of the stock pipeline. A flow's scheduler draws from torch's own generator, so both are seeded alike."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    call = json.loads((folder / "diffdistill.json").read_text())["call"]
    own = "FlowMatch" in type(pipe.scheduler).__name__
    more |= {"use_resolution_binning": False} if "PixArt" in type(pipe).__name__ else {}
    torch.manual_seed(seed)
    generator = None if own else torch.Generator().manual_seed(seed)
    latents = pipe(prompt, **call, generator=generator, output_type="latent", **more).images
    return unpack(latents, 8, 8) if latents.dim() == 3 else latents
