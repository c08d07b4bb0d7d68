"""What a scheduler's settings mean for D(x, sigma): as the scheduler itself reads its network, or refused."""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LCMScheduler
from tiny import tiny_unet
from torch import nn

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError
from diffdistill.pipelines.scheduler_config import process_of

KINDS = ("epsilon", "v_prediction", "sample")
# Settings under which a sampler takes other steps or clips, and a network is none the wiser.
STEPS_ALONE = {
    "clip_sample": True, "clip_sample_range": 0.3, "thresholding": True, "sample_max_value": 0.4, "steps_offset": 1,
    "variance_type": "fixed_large", "set_alpha_to_one": False, "timestep_spacing": "trailing", "s_noise": 1.1,
}  # fmt: skip
NO_CLIPPING = {"clip_sample": False, "thresholding": False}
SCHEDULES = {
    "linear": {},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine, 200 steps": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    "zero terminal SNR": {"rescale_betas_zero_snr": True},
    "own betas": {"trained_betas": [0.001 * (1 + i) for i in range(100)], "num_train_timesteps": 100},
    "Karras' levels": {"use_karras_sigmas": True},
}


class Probe(nn.Module):
    """A network whose output is drawn beforehand; remembers what it was shown and told."""

    def __init__(self, output):
        super().__init__()
        self.config, self.output, self.weight = SimpleNamespace(), output, nn.Parameter(torch.zeros(1))

    def forward(self, x, time, return_dict):
        self.seen = x, time
        return (self.output,)


def config_of(name, **settings):
    """As a scheduler_config.json has it: what the class does not know is dropped, the rest has its default."""
    made = getattr(diffusers, name).from_config({**settings, "_class_name": name})
    return {**made.config, "_class_name": name}


def asked(process, x, sigma, output):
    """Our D of a network with that output: (x0, what it was shown, the time it was told)."""
    network = Probe(output)
    x0 = Denoiser(network, process)(x, torch.full((len(x),), float(sigma)))
    return x0.detach(), network.seen[0].detach(), float(network.seen[1][0])


def of_scheduler(config, at):
    """The same of the scheduler at the place `at` of ten steps: (x, sigma, output) and what it makes of them."""
    scheduler = getattr(diffusers, config["_class_name"]).from_config({**config, **NO_CLIPPING})
    scheduler.set_timesteps(10)
    time = scheduler.timesteps[at]
    generator = torch.Generator().manual_seed(0)
    output, noise = torch.randn((2, 2, 3, 4, 4), generator=generator)
    if hasattr(scheduler, "sigmas") and scheduler.init_noise_sigma != 1:  # x = x0 + sigma eps
        alpha, sigma = 1.0, scheduler.sigmas[at]
    elif hasattr(scheduler, "sigmas"):  # the solvers that keep sigma / alpha beside a state of variance 1
        sigma = scheduler.sigmas[at]
        alpha = (1 + sigma**2) ** -0.5
    else:
        abar = scheduler.alphas_cumprod[time]
        alpha, sigma = abar**0.5, ((1 - abar) / abar) ** 0.5
    x = 0.5 * torch.ones(2, 3, 4, 4) + sigma * noise
    shown = scheduler.scale_model_input(alpha * x, time)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._step_index = at
        x0 = scheduler.convert_model_output(output, sample=alpha * x)
    else:
        x0 = scheduler.step(output, time, alpha * x).pred_original_sample
    return (x, sigma, output), (x0, shown, float(time))


READ = {
    "DDPMScheduler": KINDS, "DDIMScheduler": KINDS, "EulerDiscreteScheduler": KINDS,
    "EulerAncestralDiscreteScheduler": KINDS[:2], "LMSDiscreteScheduler": KINDS[:2],
    "DPMSolverMultistepScheduler": KINDS, "DPMSolverSinglestepScheduler": KINDS, "UniPCMultistepScheduler": KINDS,
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in READ.items() for kind in kinds])
def test_d_is_what_the_scheduler_makes_of_the_network(name, kind, schedule):
    config = config_of(name, prediction_type=kind, **STEPS_ALONE, **SCHEDULES[schedule])
    process = process_of(config)
    for at in (1, 4, 8):
        given, (x0, shown, time) = of_scheduler(config, at)
        mine = asked(process, *given)
        torch.testing.assert_close(mine[0], x0.float(), rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(mine[1], shown.float(), rtol=1e-4, atol=1e-4)
        # Ours are whole steps where theirs are; theirs are rounded where they choose levels between.
        assert mine[2] == pytest.approx(time, abs=0.51 if schedule == "Karras' levels" else 2e-3)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_d_of_edm_schedulers(name):
    config = config_of(name, sigma_data=0.7, sigma_min=0.01, sigma_max=30.0, rho=5.0)
    process = process_of(config)
    assert (process.sigma_min, process.sigma_max) == (0.01, 30.0)
    for at in (0, 4, 9):
        given, (x0, shown, time) = of_scheduler(config, at)
        mine = asked(process, *given)
        torch.testing.assert_close(mine[0], x0.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine[1], shown.float(), rtol=1e-5, atol=1e-5)
        assert mine[2] == pytest.approx(time, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"num_train_timesteps": 400, "stochastic_sampling": True}])
def test_d_of_a_flow_is_where_its_scheduler_ends(settings):
    config = config_of("FlowMatchEulerDiscreteScheduler", **settings)
    for wanted in (0.1, 0.7):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        scheduler.set_timesteps(sigmas=[wanted])  # one step from there to 0, where the image is
        t = scheduler.sigmas[0]
        output, state = torch.randn((2, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        x0 = scheduler.step(output, scheduler.timesteps[0], state).prev_sample
        mine = asked(process_of(config), state / (1 - t), t / (1 - t), output)
        torch.testing.assert_close(mine[0], x0, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine[1], state, rtol=1e-5, atol=1e-5)
        assert mine[2] == pytest.approx(float(scheduler.timesteps[0]), rel=1e-5)


REFUSED = {
    "flow by DPM-Solver": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "flow by UniPC": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "flow's levels": ("DEISMultistepScheduler", {"use_flow_sigmas": True}),
    "ln(sigma) as time": (
        "EulerDiscreteScheduler",
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    ),
    "another prediction": ("EulerDiscreteScheduler", {"prediction_type": "original_sample"}),
    "EDM's v": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
    "time from data to noise": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "latent consistency": ("LCMScheduler", {}),
    "trajectory consistency": ("TCDScheduler", {}),
    "few steps of a flow": ("FlowMatchLCMScheduler", {}),
    "no table of alphas": ("IPNDMScheduler", {}),
    "variance exploding": ("ScoreSdeVeScheduler", {}),
    "TrigFlow": ("SCMScheduler", {}),
}
SAID = {
    "flow by DPM-Solver": "samples a flow", "flow by UniPC": "samples a flow", "flow's levels": "samples a flow",
    "ln(sigma) as time": "timestep_type 'continuous'", "another prediction": "must be epsilon, v_prediction, sample",
    "EDM's v": "use epsilon", "time from data to noise": "invert_sigmas", "latent consistency": "few-step model",
    "trajectory consistency": "few-step model", "few steps of a flow": "few-step model",
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_not_read_are_a_sentence(case):
    name, settings = REFUSED[case]
    with pytest.raises(CheckpointError, match=name) as error:
        process_of(config_of(name, **settings))
    assert SAID.get(case, "is unknown") in str(error.value)


def test_a_scheduler_that_diffusers_cannot_make_is_a_sentence():
    for config, message in (
        ({"_class_name": "DDPMScheduler", "beta_schedule": "none such"}, "could not be made"),
        ({"_class_name": "AutoencoderKL"}, "is unknown|could not be made"),
        ({"_class_name": "NoneSuch"}, "is unknown"),
        ({}, "is unknown"),
    ):
        with pytest.raises(CheckpointError, match=message):
            process_of(config)


@pytest.fixture
def ddpm(tmp_path):
    DDPMPipeline(tiny_unet(None), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_the_sentence_names_the_folder_and_the_command_ends_with_4(ddpm, ask):
    LCMScheduler().save_pretrained(ddpm / "scheduler")
    code, _, complaint = ask("sample", str(ddpm), "--num-images", "1", "--out", str(ddpm / "out"))
    assert code == 4
    assert str(ddpm) in complaint
    assert "LCMScheduler belongs to a few-step model" in complaint


@pytest.mark.parametrize("part", ["vae", "vqvae", "image_encoder"])
def test_a_network_of_latents_is_not_taken_for_one_of_pixels(ddpm, part):
    file = ddpm / "model_index.json"
    index = json.loads(file.read_text())
    assert Denoiser.from_pretrained(ddpm).role == "teacher"
    file.write_text(json.dumps(index | {part: [None, None]}))  # a part that this pipeline was saved without
    assert Denoiser.from_pretrained(ddpm).role == "teacher"
    file.write_text(json.dumps(index | {part: ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(CheckpointError, match=f"works with its {part} and not on pixels"):
        Denoiser.from_pretrained(ddpm)
