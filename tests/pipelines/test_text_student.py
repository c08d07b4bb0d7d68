"""A student's folder: stock diffusers makes the image that this package makes, from the same noise."""

import json
import math
import shutil

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FluxPipeline
from text_drawing import ours, stock
from tiny_text import flux, pixart, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffdistill import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.adapters.flux import pack, unpack
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.process import PURE_NOISE
from diffdistill.reporting.model_card import text_card

MAKERS = {
    "sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux, "pixart": pixart,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make(folder / name) for name, make in MAKERS.items()}


def student_of(teacher, folder, steps, timesteps=None):
    """The teacher saved as a student: its levels and scheduler are a student's, its weights matter not."""
    model = Denoiser.from_pretrained(str(teacher))
    model.adapter.image_size, model.adapter.guidance = 16, 2.5  # of which SD, SDXL and SD3 are told nothing new
    levels = text_schedule(model.adapter, model.process, steps, timesteps).levels
    model.save_pretrained(folder, role="student", levels=levels)
    return Denoiser.from_pretrained(str(folder))


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("kind", MAKERS)
def test_stock_diffusers_draws_the_same_latents(folders, tmp_path, kind, steps):
    student = student_of(folders[kind], tmp_path / "student", steps)
    mine, seed = ours(student, "a red thing")
    theirs = stock(tmp_path / "student", "a red thing", seed)
    assert float(mine.std()) > 0.1
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(mine.abs().max()))


@pytest.mark.parametrize(
    ("kind", "timesteps"),
    [
        ("sd", [625]),
        ("sdxl", [399]),
        ("sdxl", [900, 350]),
        ("sd3", [900, 500]),
        ("flux", [1000, 600]),
        ("pixart", [400]),
    ],
)
def test_stock_diffusers_draws_at_times_of_ones_own(folders, tmp_path, kind, timesteps):
    student = student_of(folders[kind], tmp_path / "student", len(timesteps), timesteps)
    mine, seed = ours(student, "a red thing")
    theirs = stock(tmp_path / "student", "a red thing", seed)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(mine.abs().max()))
    expected = "sigmas" if kind in ("sd3", "flux") else "timesteps"
    metadata = json.loads((tmp_path / "student" / "diffdistill.json").read_text())
    assert expected in metadata["call"]
    assert "The levels are in the call: leave none of it out" in text_card(metadata=metadata)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_levels_are_those_of_the_scheduler(folders, kind):
    """Diffusion: steps evenly spaced from the last one. Flow: from pure noise to the shifted 1 / K."""
    model = Denoiser.from_pretrained(str(folders[kind]))
    one, four = (text_schedule(model.adapter, model.process, steps) for steps in (1, 4))
    assert one.levels[0] == four.levels[0]
    assert list(four.levels) == sorted(four.levels, reverse=True)
    times = model.process.to_network(torch.zeros(4, 1, 1, 1), torch.tensor(four.levels))[1]
    if kind in ("sd3", "flux"):
        assert one.levels == (PURE_NOISE,)
        shift = model.adapter.shift()
        assert times[0] == 1000
        torch.testing.assert_close(float(times[-1]), 1000 * shift / (4 + shift - 1), rtol=1e-5, atol=0)
    else:
        assert times.tolist() == [999, 749, 499, 249]


def test_flux_shifts_by_the_size_of_the_image(folders):
    """3.16 at 1024 pixels: exp of the published 1.15; and the fewer the tokens, the less."""
    adapter = Denoiser.from_pretrained(str(folders["flux"])).adapter
    adapter.image_size = 1024 * adapter.pipeline.vae_scale_factor // 8
    torch.testing.assert_close(adapter.shift(), math.exp(1.15), rtol=1e-6, atol=0)
    adapter.image_size = adapter.image_size // 4
    torch.testing.assert_close(adapter.shift(), math.exp(0.5), rtol=1e-6, atol=0)


def test_packing_is_that_of_the_pipeline():
    x = torch.randn(2, 4, 6, 8)
    tokens = FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), tokens)
    assert torch.equal(unpack(tokens, 6, 8), x)


@pytest.mark.parametrize("scale", [2.5, 4.0])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_guided_teacher_is_that_of_the_stock_pipeline(folders, kind, scale):
    """The network's outputs are caught in the stock pipeline and guided by hand; a distilled one is told the scale."""
    model = Denoiser.from_pretrained(str(folders[kind]))
    model.adapter.image_size = 16
    seen = []
    handle = model.network.register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
    size = {"height": 16, "width": 16}
    more = {"use_resolution_binning": False} if kind == "pixart" else {}
    latents = torch.randn(1, 4, 8, 8)
    given = pack(latents) if kind == "flux" else latents
    model.adapter.pipeline(
        "a thing", num_inference_steps=1, guidance_scale=scale, latents=given, output_type="latent", **size, **more
    )
    handle.remove()
    raw = seen[0][:, :4] if kind == "pixart" else unpack(seen[0], 8, 8) if kind == "flux" else seen[0]
    if kind != "flux":
        null, told = raw.chunk(2)
        raw = null + scale * (told - null)
    t = model.adapter.scheduler.timesteps[:1].float()
    sigma = model.process.level_at(t)
    x = latents * model.process.start_scale(float(sigma))
    if kind == "sdxl":  # Euler's first input is sigma z / sqrt(1 + sigma^2), not z
        x = latents * model.adapter.scheduler.init_noise_sigma
    with torch.no_grad():
        mine = model.guided(x, sigma, model.prompts.ids(["a thing"]), scale)
    torch.testing.assert_close(
        mine, model.process.to_x0(raw, x, sigma), rtol=1e-4, atol=1e-4 * float(mine.abs().max())
    )


def test_a_schedule_that_ends_without_signal_is_left_at_its_last_step_with_one(folders, tmp_path):
    """Zero terminal SNR with v: the student begins a step earlier, and its call says so; with epsilon: a sentence."""
    teacher = shutil.copytree(folders["sd"], tmp_path / "teacher")
    file = teacher / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text()) | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    file.write_text(json.dumps(settings))
    student = student_of(teacher, tmp_path / "student", 2)
    assert json.loads((tmp_path / "student" / "diffdistill.json").read_text())["call"]["timesteps"] == [998, 499]
    mine, seed = ours(student, "a red thing")
    theirs = stock(tmp_path / "student", "a red thing", seed)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(mine.abs().max()))
    file.write_text(json.dumps(settings | {"prediction_type": "epsilon"}))
    with pytest.raises(ConfigError, match="take a teacher that predicts v"):
        student_of(teacher, tmp_path / "none", 1)
