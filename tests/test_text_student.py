"""A student's folder: stock diffusers makes the image that this package makes, from the same noise."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import DiffusionPipeline
from tiny_text import stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffdistill import Denoiser
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.solvers import renoise
from diffdistill.text.student import stock_schedule

MAKERS = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3}
SEED = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make(folder / name) for name, make in MAKERS.items()}


def student_of(teacher, folder, steps, timesteps=None):
    """The teacher saved as a student: its levels and scheduler are a student's, its weights matter not."""
    model = Denoiser.from_pretrained(str(teacher))
    levels = stock_schedule(model.adapter, model.process, steps, timesteps).levels
    model.save_pretrained(folder, role="student", levels=levels)
    return Denoiser.from_pretrained(str(folder))


def ours(student, prompt):
    """Latents of image 0 of `SEED`, as `diffdistill sample` makes them."""
    ids = student.prompts.ids([prompt])
    noise = ImageNoise(SEED, [0], student.image_shape)
    with torch.no_grad():
        return renoise(
            lambda x, sigma: student(x, torch.full((1,), sigma), ids),
            noise,
            (*student.levels, 0.0),
            student.process.start_scale(student.levels[0]),
        ), noise.seeds[0]


def stock(folder, prompt, seed, **more):
    """Latents of the stock pipeline. A flow's scheduler draws from torch's own generator, so both are seeded alike."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    call = json.loads((folder / "diffdistill.json").read_text())["call"]
    own = "FlowMatch" in type(pipe.scheduler).__name__
    torch.manual_seed(seed)
    generator = None if own else torch.Generator().manual_seed(seed)
    return pipe(prompt, **call, generator=generator, output_type="latent", **more).images


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("kind", MAKERS)
def test_stock_diffusers_draws_the_same_latents(folders, tmp_path, kind, steps):
    student = student_of(folders[kind], tmp_path / "student", steps)
    mine, seed = ours(student, "a red thing")
    theirs = stock(tmp_path / "student", "a red thing", seed)
    assert float(mine.std()) > 0.1
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(mine.abs().max()))


@pytest.mark.parametrize(
    ("kind", "timesteps"), [("sd", [625]), ("sdxl", [399]), ("sdxl", [900, 350]), ("sd3", [900, 500])]
)
def test_stock_diffusers_draws_at_times_of_ones_own(folders, tmp_path, kind, timesteps):
    student = student_of(folders[kind], tmp_path / "student", len(timesteps), timesteps)
    mine, seed = ours(student, "a red thing")
    theirs = stock(tmp_path / "student", "a red thing", seed)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(mine.abs().max()))
    expected = "sigmas" if kind == "sd3" else "timesteps"
    assert expected in json.loads((tmp_path / "student" / "diffdistill.json").read_text())["call"]
