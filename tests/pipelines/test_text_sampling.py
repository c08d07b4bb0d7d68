"""Text-to-image teachers: the images of stock diffusers from the same seeds, prompts in turn, what is refused."""

import json

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from tiny_text import flux, pixart, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffdistill import Denoiser
from diffdistill.data.prompts import Prompt
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.process import VP
from diffdistill.sampling.generate import generate, sample_batch
from diffdistill.sampling.noise import ImageNoise, image_seed
from diffdistill.sampling.plan import plan_sampling

MAKERS = {
    "sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux, "pixart": pixart,
}  # fmt: skip
FLOWS = ("sd3", "flux")
# As `vp_ddim` has it: steps end at t = 999, not one stride below; the last ends at alpha = 1, not at alpha_0.
AS_OURS = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
PROMPTS = ["a cat", "two red dogs", "hat"]
SEED = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make(folder / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def teacher(folders):
    return Denoiser.from_pretrained(str(folders["sd"]))


def pictures(model, count=3, seed=SEED, **wishes):
    """Images in [0, 1] as stock pipelines return them."""
    plan = plan_sampling(model, **wishes)
    return (sample_batch(model, plan, seed, range(count), 64) / 2 + 0.5).clamp(0, 1)


def images(model, count, **wishes):
    return torch.cat([batch for batch, _ in generate(model, num_images=count, **wishes)])


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("scale", "negative", "size"), [(1.0, None, (16, 16)), (4.0, None, (32, 16)), (4.0, "blue", (16, 16))]
)
def test_a_teacher_draws_the_images_of_its_stock_pipeline_from_the_same_seeds(folders, kind, scale, negative, size):
    pipe = DiffusionPipeline.from_pretrained(folders[kind])
    pipe.set_progress_bar_config(disable=True)
    model = Denoiser.from_pretrained(str(folders[kind]))
    wishes = {"prompts": PROMPTS, "steps": 5, "guidance_scale": scale}
    call = {"num_inference_steps": 5, "guidance_scale": scale, "width": size[0], "height": size[1]}
    if kind not in FLOWS:  # of those `sample` does what their pipelines do
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **AS_OURS)
        wishes["sampler"] = "vp_ddim"
    if kind == "pixart":
        call["use_resolution_binning"] = False
    if kind != "flux" and negative is not None:
        wishes["negative_prompt"], call["negative_prompt"] = negative, [negative] * 3
    generators = [torch.Generator().manual_seed(image_seed(SEED, i)) for i in range(3)]
    theirs = pipe(PROMPTS, **call, generator=generators, output_type="pt").images
    assert float(theirs.std()) > 0.1
    with model.at_size(size):
        assert float((pictures(model, **wishes) - theirs).abs().max()) < 2e-5


@pytest.mark.parametrize("timesteps", [None, [399], [600, 200]])
def test_a_student_from_its_folder_draws_the_images_of_its_stock_pipeline(folders, tmp_path, timesteps):
    model = Denoiser.from_pretrained(str(folders["sd"]))
    levels = text_schedule(model.adapter, model.process, len(timesteps or [1]), timesteps).levels
    model.save_pretrained(tmp_path / "student", role="student", levels=levels)
    ours = pictures(Denoiser.from_pretrained(str(tmp_path / "student")), prompts=PROMPTS)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    call = json.loads((tmp_path / "student" / "diffdistill.json").read_text())["call"]
    generators = [torch.Generator().manual_seed(image_seed(SEED, i)) for i in range(3)]
    theirs = pipe(PROMPTS, **call, generator=generators, output_type="pt").images
    assert float((ours - theirs).abs().max()) < 1e-5


def test_prompt_and_noise_decide_an_image_and_its_neighbours_do_not(teacher):
    wishes = {"steps": 2, "guidance_scale": 3.0}
    many = images(teacher, 6, prompts=PROMPTS, **wishes)
    assert tuple(many.shape) == (6, 3, 16, 16)
    assert torch.equal(images(teacher, 6, prompts=PROMPTS, batch_size=17, **wishes), many)
    assert torch.equal(images(teacher, 1, prompts=PROMPTS, first=4, **wishes), many[4:5])
    other = images(teacher, 2, prompts=["a cat", "zebra"], **wishes)
    assert torch.equal(other[0], many[0])
    assert not torch.equal(other[1], many[1])


def test_a_prompts_own_seed_and_negative_text_come_before_those_of_the_call(teacher):
    prompts = [Prompt("a cat", "blue", 9), Prompt("a cat"), Prompt("a cat", "", 9)]
    wishes = {"steps": 2, "guidance_scale": 3.0}
    plan = plan_sampling(teacher, prompts=prompts, negative_prompt="red", **wishes)
    assert [plan.conditions.prompt(i).negative for i in range(4)] == ["blue", "red", "", "blue"]
    assert [plan.torch_seed(5, i) for i in range(3)] == [image_seed(9, 0), image_seed(5, 1), image_seed(9, 0)]
    assert [plan.torch_seed(5, i) for i in range(3, 5)] == [image_seed(9, 1), image_seed(5, 4)]
    found = images(teacher, 3, prompts=prompts, negative_prompt="red", seed=5, **wishes)
    blue = images(teacher, 1, prompts=["a cat"], negative_prompt="blue", seed=9, **wishes)
    red = images(teacher, 1, prompts=["a cat"], negative_prompt="red", seed=5, first=1, **wishes)
    empty = images(teacher, 1, prompts=["a cat"], seed=9, **wishes)
    assert torch.equal(found, torch.cat([blue, red, empty]))
    assert not torch.equal(blue, empty)


def test_what_the_user_leaves_open(folders, teacher):
    plan = plan_sampling(teacher, prompts=["a"])
    assert (plan.sampler, plan.evaluations, plan.conditions.guidance_scale) == ("dpm_solver", 20, 7.5)
    flow = plan_sampling(Denoiser.from_pretrained(str(folders["sd3"])), prompts=["a"])
    assert (flow.sampler, flow.evaluations, flow.conditions.guidance_scale) == ("flow_euler", 28, 7.0)
    unguided = plan_sampling(teacher, prompts=[Prompt("a", "b")], guidance_scale=1.0)
    assert unguided.conditions.prompts == (Prompt("a"),)  # negatives of a file do not act


@pytest.mark.parametrize("variance", [1.0, 0.1])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_usual_sampler_is_right_to_two_percent_after_20_calls_on_gaussian_latents(teacher, variance, zero_snr):
    """D = V x / (V + sigma^2); the probability flow takes x at level s to x sqrt(V / (V + s^2))."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**settings, rescale_betas_zero_snr=zero_snr)
    model = teacher.with_network(teacher.network)
    model.process = VP(scheduler.alphas_cumprod, "v_prediction")
    model.guided = lambda x, sigma, *_: variance / (variance + sigma[:, None, None, None] ** 2) * x
    model.decode = lambda latents: latents
    plan = plan_sampling(model, prompts=["a"])
    assert (plan.sampler, plan.evaluations) == ("deis" if zero_snr else "dpm_solver", 20)
    found = sample_batch(model, plan, 0, range(4), 4)
    top = plan.levels[0]
    noise = ImageNoise(0, range(4), model.image_shape).draw() * (1 + top**2) ** 0.5
    exact = noise * (variance / (variance + top**2)) ** 0.5
    assert float((found - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("sampler", ["heun", "euler", "ddim", "ddpm", "deis", "unipc", "euler_ancestral"])
def test_every_sampler_draws_texts(teacher, sampler):
    found = pictures(teacher, 2, prompts=PROMPTS, sampler=sampler, steps=4)
    assert bool(found.isfinite().all())
    assert float(found.std()) > 0.1


def test_corrections_act_on_text_models_too(teacher):
    plain = pictures(teacher, prompts=PROMPTS, sampler="vp_ddim", steps=4)
    same = pictures(teacher, prompts=PROMPTS, sampler="vp_ddim", steps=4, epsilon_scaling="1")
    scaled = pictures(teacher, prompts=PROMPTS, sampler="vp_ddim", steps=4, epsilon_scaling="1.05")
    assert torch.equal(plain, same)
    assert float((plain - scaled).abs().max()) > 1e-3


def test_latents_of_a_student_are_not_clamped(teacher):
    student = teacher.with_network(teacher.network, {"role": "student", "levels": [14.0]}).eval()
    plan = plan_sampling(student, prompts=PROMPTS)
    seen = []
    student.decode = lambda latents: seen.append(latents) or latents[:, :3]
    sample_batch(student, plan, 0, range(3), 64)
    assert float(torch.cat(seen).abs().max()) > 1.5


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({}, "this model draws texts; give --prompt TEXT or --prompts FILE"),
        ({"prompts": []}, "this model draws texts; give"),
        ({"prompts": [" "]}, "the prompt ' ' is empty; write a text"),
        ({"class_labels": [0]}, "this model draws texts and takes no class labels; give --prompt"),
        (
            {"prompts": ["a"], "guidance_scale": 1.0, "negative_prompt": "b"},
            "a negative prompt acts through the second pass of guidance, and here is none; leave it out, or",
        ),
        ({"prompts": ["a"], "steps": 2000, "sampler": "vp_ddim"}, "sampler 'vp_ddim' takes 1 to 1000"),
    ],
)
def test_what_a_text_model_cannot_draw_is_one_sentence(teacher, wishes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        generate(teacher, num_images=1, **wishes)


def test_flux_is_told_its_guidance_and_has_no_pass_for_a_negative_prompt(folders):
    model = Denoiser.from_pretrained(str(folders["flux"]))
    assert plan_sampling(model, prompts=["a"]).conditions.guidance_scale == 3.5
    with pytest.raises(ConfigError, match=r"the second pass of guidance, and here is none; leave it out$"):
        plan_sampling(model, prompts=["a"], guidance_scale=4.0, negative_prompt="b")
    assert plan_sampling(model, prompts=[Prompt("a", "b")], guidance_scale=4.0).conditions.prompts == (Prompt("a"),)


def test_a_student_refuses_a_negative_prompt_and_takes_a_file_with_some(teacher):
    student = teacher.with_network(teacher.network, {"role": "student", "levels": [14.0]})
    with pytest.raises(ConfigError, match=r"and here is none; leave it out$"):
        plan_sampling(student, prompts=["a"], negative_prompt="b")
    with pytest.raises(ConfigError, match="a student has its teacher's guidance built in"):
        plan_sampling(student, prompts=["a"], guidance_scale=5.0)
    assert plan_sampling(student, prompts=[Prompt("a", "b")]).conditions.prompts == (Prompt("a"),)


def test_sample_has_a_size(teacher, folders, tmp_path, ask):
    out = tmp_path / "out"
    words = ("sample", str(folders["sd"]), "--prompt", "a cat", "--num-images", "2", "--steps", "2")
    assert ask(*words, "--size", "32x16", "--out", str(out))[0] == 0
    with Image.open(out / "00001.png") as drawn:
        assert drawn.size == (32, 16)
    assert json.loads((out / "samples.json").read_text())["size"] == [32, 16]
    code, _, err = ask(*words, "--size", "33x16", "--out", str(tmp_path / "no"))
    assert (code, "size is 33x16, and sides are multiples of 4 here; give 32x16" in err) == (2, True)
    code, _, err = ask(
        "sample",
        "builtin:fashion_mnist_teacher",
        "--num-images",
        "1",
        "--size",
        "32x16",
        "--out",
        str(tmp_path / "no"),
    )
    assert (code, "this one draws 28x28; leave it out" in err) == (2, True)
    assert not (tmp_path / "no").exists()
