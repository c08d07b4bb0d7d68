"""Consistency models of others, against diffusers' own scheduler and pipeline."""

import json

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from PIL import Image
from tiny import tiny_teacher, tiny_unet

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.pixel.schedule import near_levels
from diffdistill.pipelines.scheduler_config import process_of
from diffdistill.process import EDM
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling

# The settings of the published models, and others in every place. There sigma_min is a power of two: the stock
# scheduler ends with noise of sqrt(sigma_min^2 - sigma_min^2), one of them in float32: for 0.05 that is 1e-5, not 0.
SETTINGS = {
    "published": {},
    "others": {"num_train_timesteps": 18, "sigma_min": 0.0625, "sigma_max": 30.0, "sigma_data": 0.8, "rho": 3.0}
    | {"s_noise": 1.3, "clip_denoised": False},
}
COUNT = 3


def published(folder, channels=3, classes=None, **settings):
    """A folder as diffusers writes it, with nothing of this package in it."""
    scheduler = CMStochasticIterativeScheduler(**settings)
    ConsistencyModelPipeline(tiny_unet(classes, channels).eval(), scheduler).save_pretrained(folder)
    assert not (folder / "diffdistill.json").exists()
    return folder


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    return published(tmp_path_factory.mktemp("cm") / "gray", channels=1, classes=3)


def stock(folder, **call):
    """Images of the stock pipeline in [-1, 1], from the noise of `diffdistill sample` for seed 0."""
    pipe = ConsistencyModelPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if pipe.unet.config.num_class_embeds:
        call["class_labels"] = [i % pipe.unet.config.num_class_embeds for i in range(COUNT)]
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(COUNT)]
    images = pipe(batch_size=COUNT, generator=generators, output_type="np", **call).images
    return 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1


def ours(folder, steps=None):
    model = Denoiser.from_pretrained(folder)
    plan = plan_sampling(model, steps=steps)
    return sample_batch(model, plan, 0, range(COUNT), COUNT).clamp(-1, 1)


def by_the_scheduler(folder, x, sigma):
    """D of diffusers' own network call and boundary condition, the change of x apart: D - x."""
    pipe = ConsistencyModelPipeline.from_pretrained(folder)
    scheduler, level = pipe.scheduler, torch.tensor(sigma)
    skip, out = scheduler.get_scalings_for_boundary_condition(level)
    scaled = x / (level**2 + scheduler.config.sigma_data**2) ** 0.5
    with torch.no_grad():
        output = pipe.unet.eval()(scaled, torch.full((len(x),), 250 * np.log(sigma))).sample
    return skip * x + out * output


@pytest.mark.parametrize("settings", SETTINGS)
def test_d_has_the_boundary_condition_of_its_own_scheduler(tmp_path, settings):
    folder = published(tmp_path / "m", **SETTINGS[settings])
    model = Denoiser.from_pretrained(folder)
    low, high = model.sigma_min, model.sigma_max
    assert (model.role, model.levels) == ("student", (pytest.approx(high, rel=1e-12),))
    generator = torch.Generator().manual_seed(1)
    for sigma in (low, 5 * low, 0.5, high):
        x = torch.rand(8, 3, 8, 8, generator=generator) * 2 - 1
        x = x + sigma * torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            got = model(x, torch.full((8,), sigma))
        want = by_the_scheduler(folder, x, sigma)
        change = (want - x).norm() if sigma > low else torch.tensor(1.0)
        assert (got - want).norm() < 2e-5 * change
        if (settings, sigma) == ("published", 5 * low):  # what the same network says as a denoiser's
            with torch.no_grad():
                unshifted = Denoiser(model.network, EDM())(x, torch.full((8,), sigma))
            assert (unshifted - want).norm() / change == pytest.approx(0.25, abs=0.03)
    assert torch.equal(model(x, torch.full((8,), low)), x)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("channels", "classes"), [(1, None), (1, 3), (3, 3)])
def test_sample_draws_the_images_of_the_stock_pipeline(tmp_path, settings, channels, classes):
    folder = published(tmp_path / "m", channels, classes, **SETTINGS[settings])
    torch.testing.assert_close(ours(folder), stock(folder), rtol=0, atol=1e-5)
    every = (18,) if settings == "others" else ()  # all the steps of the schedule: the last is at sigma_min
    for steps in (1, 2, 5, *every):
        got, want = ours(folder, steps), stock(folder, num_inference_steps=steps)
        assert want.std() > 0.1
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_the_command_writes_the_pictures_of_the_stock_pipeline(gray, tmp_path, ask):
    for steps, flags in ((1, []), (2, ["--steps", "2"])):
        out = tmp_path / f"images{steps}"
        code, printed, _ = ask("sample", str(gray), "--num-images", str(COUNT), "--out", str(out), *flags)
        assert code == 0
        assert f"consistency, {steps} evaluation" in printed
        want = ((stock(gray, num_inference_steps=steps) + 1) * 127.5).round()
        got = torch.stack([torch.from_numpy(np.array(Image.open(out / f"{i:05d}.png"))) for i in range(COUNT)])
        assert (got.float() - want[:, 0]).abs().max() <= 1  # a value halfway between two grey levels may go either way
        record = json.loads((out / "samples.json").read_text())
        assert (record["sampler"], record["steps"]) == ("consistency", steps)


@pytest.mark.parametrize("settings", SETTINGS)
def test_saved_again_it_is_the_same_to_stock_diffusers_and_to_us(tmp_path, settings):
    folder = published(tmp_path / "m", 1, 3, **SETTINGS[settings])
    model = Denoiser.from_pretrained(folder)
    model.save_pretrained(tmp_path / "levels", role="student", levels=model.levels)
    Denoiser.from_pretrained(tmp_path / "levels").save_pretrained(tmp_path / "bare", role="student")
    kept = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    for again in (tmp_path / "levels", tmp_path / "bare"):
        assert json.loads((again / "scheduler" / "scheduler_config.json").read_text()) == kept
        for steps in (1, 2):
            assert torch.equal(stock(again, num_inference_steps=steps), stock(folder, num_inference_steps=steps))
            assert torch.equal(ours(again, steps), ours(folder, steps))


def test_it_cannot_be_saved_as_a_teacher(gray, tmp_path):
    with pytest.raises(ConfigError, match=r"boundary condition of a consistency model at sigma 0\.002"):
        Denoiser.from_pretrained(gray).save_pretrained(tmp_path / "t", role="teacher")


@pytest.mark.parametrize("levels", [None, (2.5, 1.0, 0.3)], ids=["spaced", "chosen"])
@pytest.mark.parametrize("boundary", [0.002, 0.0625])
def test_a_student_that_began_as_one_keeps_the_boundary(tmp_path, boundary, levels):
    process = EDM(sigma_min=boundary, boundary=boundary)
    at = near_levels(process, 3, 2.5, levels)
    student = Denoiser(tiny_unet(3), process).eval()
    student.save_pretrained(tmp_path / "s", role="student", levels=at)
    call = json.loads((tmp_path / "s" / "diffdistill.json").read_text())["call"]
    assert ("timesteps" in call) == (levels is not None)
    back = Denoiser.from_pretrained(tmp_path / "s")
    assert (back.process.boundary, back.levels) == (boundary, at)
    torch.testing.assert_close(ours(tmp_path / "s"), stock(tmp_path / "s", **call), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma_data", [0.25, 1.0])
def test_a_student_of_data_of_another_width_is_itself_in_stock_diffusers(tmp_path, sigma_data):
    student = Denoiser(tiny_unet(3), EDM(sigma_data)).eval()
    student.save_pretrained(tmp_path / "s", role="student", levels=(2.5,))
    noise = [torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(image_seed(0, i))) for i in range(COUNT)]
    x, c = 2.5 * torch.cat(noise), 2.5**2 + sigma_data**2
    with torch.no_grad():
        raw = student.network(x / c**0.5, torch.full((COUNT,), 250 * np.log(2.5)), torch.arange(COUNT)).sample
    want = (sigma_data**2 / c * x + 2.5 * sigma_data / c**0.5 * raw).clamp(-1, 1)
    torch.testing.assert_close(stock(tmp_path / "s"), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(tmp_path / "s"), want, rtol=0, atol=1e-5)


def test_a_teacher_of_this_package_has_no_boundary_though_its_scheduler_has_a_sigma_min(tmp_path):
    tiny_teacher().save_pretrained(tmp_path / "t", role="teacher")
    assert json.loads((tmp_path / "t" / "scheduler" / "scheduler_config.json").read_text())["sigma_min"] == 0.002
    back = Denoiser.from_pretrained(tmp_path / "t")
    assert (back.role, back.process) == ("teacher", EDM())


@pytest.mark.parametrize("whose", ["of others", "our student"])
def test_no_distillation_takes_it_for_a_teacher(gray, tmp_path, ask, whose):
    folder = gray
    if whose == "our student":
        folder = tmp_path / "s"
        Denoiser(tiny_unet(3), EDM()).save_pretrained(folder, role="student", levels=(2.5,))
    words = f"fashion_mnist/sid teacher={folder} output_dir={tmp_path / 'run'} student.regression=null".split()
    code, _, complaint = ask("distill", *words, "data.image_size=8")
    assert code == 2
    assert "is not the posterior mean E[x0 | x_t]" in complaint
    assert ("is a consistency model" in complaint) == (whose == "of others")
    assert not (tmp_path / "run").exists()


def test_what_it_cannot_do_is_a_sentence(gray):
    model = Denoiser.from_pretrained(gray)
    for wishes, message in (
        ({"steps": 41}, "steps is 41; this consistency model takes 1 to 40"),
        ({"sampler": "heun"}, "needs a denoiser at every level"),
        ({"guidance_scale": 2.0}, "leave out the guidance scale"),
        ({"epsilon_scaling": "1.01"}, "leave them out, or sample the teacher"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_sampling(model, **wishes)


def test_settings_that_do_not_fit_are_a_sentence(gray, tmp_path):
    import shutil

    for change, sentence in (
        ({"rho": 0}, "the rho 0, and it must be"),
        ({"sigma_max": "eighty"}, "the sigma_max 'eighty', and it must be"),
        ({"num_train_timesteps": 1}, "settings of its CMStochasticIterativeScheduler do not fit"),
    ):
        folder = tmp_path / next(iter(change))
        shutil.copytree(gray, folder)
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(CheckpointError, match=sentence):
            Denoiser.from_pretrained(folder)


def test_what_a_config_leaves_out_has_the_schedulers_default():
    bare = process_of({"_class_name": "CMStochasticIterativeScheduler"}, "student")
    config = CMStochasticIterativeScheduler().config
    assert (bare.sigma_data, bare.sigma_min, bare.sigma_max, bare.boundary) == (
        config.sigma_data, config.sigma_min, config.sigma_max, config.sigma_min,
    )  # fmt: skip


@pytest.mark.parametrize("levels", ["null", "[80.0, 2.0]"], ids=["one step", "two steps"])
def test_a_run_begins_as_it(gray, tmp_path, ask, monkeypatch, levels):
    """At a rate near 0 the student is the model itself, at every level, and its folder keeps the boundary."""
    monkeypatch.chdir(tmp_path)
    tiny_teacher(seed=1).save_pretrained("teacher", role="teacher")
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    np.savez("images.npz", images=images, labels=np.arange(16) % 3)
    steps = 1 if levels == "null" else 2
    words = [
        "fashion_mnist/sid", "teacher=teacher", f"initialize_from={gray}", "data.path=images.npz", "output_dir=run",
        f"student.steps={steps}", f"student.levels={levels}", "max_train_steps=2",
        "student.optimizer.learning_rate=1e-12", "train_batch_size=4", "num_threads=1", "evaluation.at_end=false",
        "student.regression=null", *(["student.sigma_init=80"] if steps == 1 else []),
    ]  # fmt: skip
    code, _, complaint = ask("distill", *words, "--quiet")
    assert code == 0, complaint
    folder = tmp_path / "run" / "student"
    call = json.loads((folder / "diffdistill.json").read_text())["call"]
    back, start = Denoiser.from_pretrained(folder), Denoiser.from_pretrained(gray)
    assert back.process.boundary == 0.002
    x, sigma, labels = torch.randn(3, 1, 8, 8), torch.tensor([80.0, 2.0, 0.01]), torch.arange(3)
    with torch.no_grad():
        torch.testing.assert_close(back(x, sigma, labels), start(x, sigma, labels), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(folder), stock(folder, **call), rtol=0, atol=1e-5)
    if steps == 1:
        torch.testing.assert_close(ours(folder), ours(gray), rtol=0, atol=1e-5)


def test_a_start_of_another_kind_is_a_sentence(gray, tmp_path, ask):
    published(tmp_path / "colour", channels=3, classes=3)
    published(tmp_path / "free", channels=1)
    tiny_teacher().save_pretrained(tmp_path / "teacher", role="teacher")
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(16) % 3)
    for name, said in (("colour", "has image shape"), ("free", "has number of classes None")):
        code, _, complaint = ask(
            "distill", "fashion_mnist/sid", f"teacher={tmp_path / 'teacher'}", f"initialize_from={tmp_path / name}",
            f"data.path={tmp_path / 'images.npz'}", f"output_dir={tmp_path / 'run'}", "student.regression=null",
        )  # fmt: skip
        assert code == 2
        assert said in complaint
