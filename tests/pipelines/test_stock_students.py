"""Students of pixel networks with training steps, in stock diffusers."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    UNet2DModel,
)
from tiny import tiny_unet

from diffdistill.cli import main as diffdistill
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.network import clone_network
from diffdistill.pipelines.pixel.schedule import near_levels, pixel_schedule
from diffdistill.process import EDM, VP, Flow
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling

KINDS = ("epsilon", "v_prediction", "sample")
SCHEDULES = {
    "linear": DDPMScheduler(),
    "cosine": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "zero terminal SNR": DDPMScheduler(rescale_betas_zero_snr=True),
}


def vp(kind: str, schedule: str = "linear") -> VP:
    return VP(SCHEDULES[schedule].alphas_cumprod, kind)


def drawn(folder, count: int, **call):
    """Images of the stock pipeline in [-1, 1], from the noise of `diffdistill sample` for seed 0."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is ConsistencyModelPipeline
    assert type(pipe.scheduler) is LCMScheduler
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(count)]
    images = pipe(batch_size=count, generator=generators, output_type="np", **call).images
    return 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1


def ours(folder, count: int):
    model = Denoiser.from_pretrained(str(folder))
    plan = plan_sampling(model)
    return sample_batch(model, plan, 0, range(count), count).clamp(-1, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("levels", [(2.5,), (2.5, None, None), (5.0, 1.0, 0.3)], ids=str)
def test_stock_diffusers_draws_the_image_of_sample(tmp_path, kind, schedule, levels):
    process = vp(kind, schedule)
    given = None if None in levels else levels
    at = near_levels(process, len(levels), levels[0], given)
    assert at[0] == pytest.approx(levels[0], rel=0.02)
    student = Denoiser(tiny_unet(3), process).eval()
    student.save_pretrained(tmp_path / "s", role="student", levels=at)
    call = json.loads((tmp_path / "s" / "diffdistill.json").read_text())["call"]
    assert ("timesteps" in call) == (len(levels) == 3 and given is not None)
    got = drawn(tmp_path / "s", 3, class_labels=[0, 1, 2], **call)
    want = ours(tmp_path / "s", 3)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_the_call_without_arguments_is_one_step_at_the_students_level(tmp_path):
    process = vp("epsilon")
    for levels in ((2.5,), (80.0,)):
        at = near_levels(process, 1, levels[0], None)
        folder = tmp_path / str(levels[0])
        Denoiser(tiny_unet(None), process).eval().save_pretrained(folder, role="student", levels=at)
        torch.testing.assert_close(drawn(folder, 2), ours(folder, 2), rtol=0, atol=2e-5)


def test_levels_lie_on_whole_training_steps_and_the_schedule_ends_at_the_first():
    process = vp("epsilon")
    levels = near_levels(process, 4, 2.5, None)
    times = process.time(torch.tensor(levels))
    assert torch.equal(times, times.round())
    schedule = pixel_schedule(process, levels)
    assert schedule.scheduler.config.num_train_timesteps == int(times[0]) + 1
    assert schedule.levels == pytest.approx(levels, rel=1e-6)
    # The saved schedule is the network's own, up to there.
    abar = 1 / (1 + (2 * process.log_sigmas[: int(times[0]) + 1]).exp())
    torch.testing.assert_close(schedule.scheduler.alphas_cumprod.double(), abar, rtol=2e-5, atol=0)


def test_a_chosen_level_goes_to_the_nearest_training_step():
    """Near in ln sigma, sigma^2 = (1 - abar) / abar of the stock scheduler; never step 0, which draws nothing."""
    abar = DDPMScheduler().alphas_cumprod.double()
    steps = ((1 - abar) / abar).sqrt().tolist()
    between = [steps[t] ** 0.3 * steps[t + 1] ** 0.7 for t in (600, 300, 20)]
    below = [steps[t] ** 0.7 * steps[t + 1] ** 0.3 for t in (600, 300, 20)]
    assert near_levels(vp("epsilon"), 3, 2.5, between) == pytest.approx([steps[601], steps[301], steps[21]], rel=1e-5)
    assert near_levels(vp("epsilon"), 3, 2.5, below) == pytest.approx([steps[600], steps[300], steps[20]], rel=1e-5)
    assert near_levels(vp("epsilon"), 1, 2.5, [0.9 * steps[0]]) == pytest.approx([steps[1]], rel=1e-5)


def test_levels_that_no_two_steps_can_have_and_networks_without_a_stock_pipeline_are_a_sentence():
    with pytest.raises(ConfigError, match="two on one"):
        near_levels(vp("epsilon"), 2, 2.5, (2.5, 2.4999))
    with pytest.raises(ConfigError, match=r"has 2 training steps below sigma_init 0\.0"):
        near_levels(vp("epsilon"), 4, 0.02, None)
    for process in (Flow(), EDM(time_scale=1.0)):
        with pytest.raises(ConfigError, match="no stock pipeline samples"):
            near_levels(process, 1, 2.5, None)


def test_a_copy_of_a_network_that_predicts_variances_predicts_the_noise_alone():
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=8, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    copy = clone_network(network, None).eval()
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    assert copy.config.out_channels == 1
    assert torch.equal(Denoiser(copy, vp("epsilon"))(x, sigma), Denoiser(network, vp("epsilon"))(x, sigma))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_ddpm_pipeline_is_distilled_and_sampled_by_the_usual_verbs(tmp_path, monkeypatch, steps):
    monkeypatch.chdir(tmp_path)
    DDPMPipeline(tiny_unet(None, size=8), DDPMScheduler()).save_pretrained("ddpm")
    np.savez("images.npz", images=np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8))
    words = [
        "fashion_mnist/sid", "teacher=ddpm", "data.path=images.npz", f"student.steps={steps}", "output_dir=run",
        "max_train_steps=3", "train_batch_size=4", "num_threads=1", "evaluation.at_end=false",
        "student.regression={steps: 1, pairs: 8}",
    ]  # fmt: skip
    assert diffdistill(["distill", *words, "--quiet"]) == 0
    call = json.loads((tmp_path / "run" / "student" / "diffdistill.json").read_text())["call"]
    assert call == {"num_inference_steps": steps}
    got, want = drawn(tmp_path / "run" / "student", 2, **call), ours(tmp_path / "run" / "student", 2)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
