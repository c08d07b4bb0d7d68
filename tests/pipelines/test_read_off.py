"""Pipelines whose call is read off themselves: as their adapters have it where there are some, as stock diffusers has
it where there are none (every class: test_read_off_sweep.py), and in one sentence where it cannot be read.
"""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")

import diffusers
from tiny_text import flux, pixart, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from tiny_unadapted import SIDE, pixart_sigma, qwen_image, z_image

from diffdistill import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.calls.adapter import ReadOff
from diffdistill.pipelines.text.calls.gather import Gather, Unreadable, probes
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.run import read_off, task_of

SLOW = ("sd", "pixart")  # whose calls are those of SDXL, and of PixArt-Sigma, with less, and more
ADAPTED = {
    "sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux, "pixart": pixart,
    "pixart_sigma": pixart_sigma,
}  # fmt: skip
SEED = 5


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    torch.manual_seed(0)
    return qwen_image(tmp_path_factory.mktemp("qwen") / "teacher")


@pytest.fixture(scope="module")
def model(qwen):
    made = Denoiser.from_pretrained(str(qwen))
    made.adapter.image_size = SIDE
    return made


def test_in_half_precision_it_is_read_off_in_float32_before(qwen, tmp_path):
    small = shutil.copytree(qwen, tmp_path / "small")
    (small / "diffdistill.json").write_text(json.dumps({"call": {"height": SIDE}}))
    exact, half = (Denoiser.from_pretrained(str(small), dtype=dtype) for dtype in (None, "bfloat16"))
    assert half.dtypes == {"dtype": "bfloat16", "vae_dtype": "bfloat16"}
    assert {p.dtype for p in half.adapter.pipeline.text_encoder.parameters()} == {torch.bfloat16}
    assert half.adapter.reading.times == exact.adapter.reading.times
    x, sigma = torch.randn(1, *exact.image_shape), torch.tensor([0.7])
    with torch.no_grad():
        x0, rounded = (one(x, sigma, one.prompts.ids(["two apples"])) for one in (exact, half))
        images = half.decode(rounded)
    assert 0 < (x0 - rounded).abs().max() < 0.05 * x0.abs().max()
    assert images.dtype == torch.float32
    half.adapter.image_size = 2 * SIDE
    with pytest.raises(ConfigError, match="read off again at another size, which takes float32"):
        _ = half.image_shape


def test_a_run_reads_it_off_once_at_its_own_size_before_anything_rests(qwen):
    teacher = Denoiser.from_pretrained(str(qwen))
    adapter = teacher.adapter
    assert (task_of(teacher), adapter.guidance) == ({}, 1.0)  # what a run asks of every adapter
    read_off(adapter, SIDE + 1)  # which the data's own check refuses
    assert adapter._reading is None
    read_off(adapter, SIDE)
    first = adapter._reading
    adapter.image_size = SIDE
    assert first is not None
    assert adapter.reading is first


def close(mine, theirs):
    return torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in ADAPTED])
def test_it_is_called_as_its_adapter_calls_it(tmp_path, kind):
    known = Denoiser.from_pretrained(str(ADAPTED[kind](tmp_path / kind))).adapter
    read = ReadOff(known.pipeline, tmp_path / kind)
    known.sides = read.sides = 16, 32
    known.guidance = read.guidance = 2.5
    assert read.latent_shape == known.latent_shape
    assert read.embeds_guidance == known.embeds_guidance
    assert read.default_guidance == known.default_guidance
    assert read.default_sigmas(4) == known.default_sigmas(4)
    if kind in ("sd3", "flux"):
        assert read.shift(4) == pytest.approx(known.shift(4), rel=1e-6)
    x, t = torch.randn(2, *known.latent_shape), torch.tensor([500.0, 250.0])
    with torch.no_grad():
        theirs, mine = (one.predict(known.network, x, t, one.joined(["a cat", None])) for one in (known, read))
        close(mine, theirs[:, : mine.shape[1]])
        close(read.decode(x), known.decode(x))
        pictures = torch.rand(2, 3, 16, 32) * 2 - 1
        close(read.encode(pictures), known.encode(pictures))
    close(read.arrange(x), known.arrange(x))
    assert ReadOff(known.pipeline, tmp_path / kind).image_size == known.native_size()


def test_a_class_without_adapter_draws_the_guided_images_of_its_stock_pipeline(qwen, model):
    """Two calls a step, packed latents, the conditional's length, and texts of two lengths in one batch."""
    prompts, seeds = ["a cat", "two red dogs"], [image_seed(SEED, i) for i in range(2)]
    pipe = diffusers.DiffusionPipeline.from_pretrained(qwen)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompts, negative_prompt=[" "] * 2, true_cfg_scale=4.0, num_inference_steps=3, height=SIDE, width=SIDE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="pt",
    ).images  # fmt: skip
    plan = plan_sampling(model, prompts=prompts, steps=3, guidance_scale=4.0)
    mine = (sample_batch(model, plan, SEED, range(2), 64) / 2 + 0.5).clamp(0, 1)
    assert float(theirs.std()) > 0.03
    close(mine, theirs)


def test_its_student_is_a_stock_folder(model, tmp_path):
    levels = text_schedule(model.adapter, model.process, 2).levels
    model.save_pretrained(tmp_path / "student", role="student", levels=levels)
    call = json.loads((tmp_path / "student" / "diffdistill.json").read_text())["call"]
    assert call == {"num_inference_steps": 2, "true_cfg_scale": 1.0, "height": SIDE, "width": SIDE}
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(image_seed(SEED, 0))
    theirs = pipe("a cat", output_type="pt", **call).images
    student = Denoiser.from_pretrained(str(tmp_path / "student"))
    assert student.levels == pytest.approx(levels)
    mine = sample_batch(student, plan_sampling(student, prompts=["a cat"]), SEED, range(1), 64) / 2 + 0.5
    close(mine.clamp(0, 1), theirs)


def test_texts_of_different_lengths_are_filled_and_marked(model):
    joined = model.adapter.joined(["a cat", "two red dogs"])
    mask, texts = joined["encoder_hidden_states_mask"], joined["encoder_hidden_states"]
    short, long = mask.sum(1).tolist()
    assert short < long == texts.shape[1]
    assert not texts[0, short:].any()
    assert texts[0, :short].any(dim=1).all()
    assert model.adapter.joined(["a cat", "a dog"])["encoder_hidden_states_mask"] is None


def test_time_sign_and_scale_are_those_of_the_pipeline(tmp_path):
    """Z-Image: time runs to the data, the output is minus the velocity, guidance is by w - 1, its default too."""
    adapter = Denoiser.from_pretrained(str(z_image(tmp_path / "z"))).adapter
    adapter.image_size = SIDE
    reading = adapter.reading
    assert reading.times == {("t",): (-0.001, 1.0)}
    assert set(reading.outof.scale.tolist()) == {-1.0}
    assert reading.guidance.arguments(4.0, 1) == {"guidance_scale": 3.0}
    assert adapter.default_guidance == 6.0
    assert adapter.student_call()["guidance_scale"] == 0.0


def test_a_network_that_is_not_replayed_is_refused_in_one_sentence(qwen):
    other = Denoiser.from_pretrained(str(qwen))
    other.adapter.image_size = SIDE
    other.network.proj_out.register_forward_hook(lambda _m, _i, output: output + 1e-2 * torch.randn_like(output))
    with pytest.raises(ConfigError, match=r"QwenImagePipeline, .* network's output is .* off when it is replayed"):
        _ = other.image_shape


def test_sizes_that_the_pipeline_does_not_draw_are_refused(qwen):
    other = Denoiser.from_pretrained(str(qwen))
    other.adapter.image_size = SIDE + 4
    with pytest.raises(ConfigError, match=r"cannot be read off at 36x36 pixels: it draws images of \(3, 32, 32\)"):
        _ = other.image_shape


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("KandinskyPipeline", "no vae"),
        ("WanPipeline", "one network"),
        ("LTXPipeline", "does not draw an image"),
        ("QwenImagePipeline", None),
        ("Krea2Pipeline", None),
    ],
)
def test_what_a_class_is_refused_for(name, reason):
    said = ReadOff.why_not(getattr(diffusers, name))
    assert said is None if reason is None else reason in said


def test_a_map_that_mixes_or_loses_numbers_is_none():
    seen = probes((2, 3))
    assert Gather.read(-seen.flip(1), (2, 3)).inverse()(-torch.ones(1, 2, 3)).equal(torch.ones(1, 2, 3))
    with pytest.raises(Unreadable, match="lost"):
        Gather.read(seen * 0, (2, 3))
    with pytest.raises(Unreadable, match="mixed"):
        Gather.read(seen.flatten(1).sort().values.reshape(seen.shape) + seen.cumsum(2) / 3, (2, 3))
    with pytest.raises(Unreadable, match="not the noise alone"):
        Gather.read(seen[:, :1].expand(-1, 2, -1), (2, 3)).inverse()
