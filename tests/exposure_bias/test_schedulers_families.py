"""How each family of schedulers counts its steps and writes its state, and what is refused."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from gaussian import run
from stock_schedulers import NAMES, drawn, noise, plain

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.parts.exposure_bias.coordinates import position, solver_step
from diffdistill.parts.exposure_bias.scheduler import DEFAULTS
from diffdistill.schedulers import coordinates, epsilon_scaling, load_scheduler, time_shift_sampler


def numbered(scheduler: Any, steps: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    step = scheduler.step

    def record(out: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> Any:
        found.append(solver_step(scheduler, position(scheduler, t)))
        return step(out, t, x)

    scheduler.step = record
    run(scheduler, noise(), steps)
    return found


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusers.DDIMScheduler(), [0, 1, 2, 3, 4, 5]),
        (diffusers.DPMSolverMultistepScheduler(), [0, 1, 2, 3, 4, 5]),
        (diffusers.HeunDiscreteScheduler(), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        (diffusers.KDPM2DiscreteScheduler(), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        (diffusers.PNDMScheduler(skip_prk_steps=True), [0, 0, 1, 2, 3, 4, 5]),
        (diffusers.PNDMScheduler(), [0] * 4 + [1] * 4 + [2] * 4 + [3, 4, 5]),
    ],
    ids=["ddim", "dpm", "heun", "kdpm2", "plms", "prk"],
)
def test_evaluations_of_one_solver_step_share_its_number(scheduler: Any, expected: list[int]) -> None:
    assert numbered(scheduler, 6) == [(step, 6) for step in expected]


def test_image_to_image_starts_in_the_middle_of_the_schedule() -> None:
    for scheduler in (diffusers.DDIMScheduler(), diffusers.PNDMScheduler(skip_prk_steps=True)):
        scheduler.set_timesteps(10)
        times = scheduler.timesteps[5:]
        first = solver_step(scheduler, position(scheduler, times[0]))
        assert first == (5 if isinstance(scheduler, diffusers.DDIMScheduler) else 4, 10)


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_second_stages_of_kdpm2_lie_at_their_middle_level(name: str) -> None:
    """A v network that is exact there makes the same x0 as an epsilon network; at any other level it would not."""
    found = [drawn(epsilon_scaling(plain(name, prediction_type=kind), b=1.01)) for kind in ("epsilon", "v_prediction")]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_coordinates_run_from_noise_to_data(name: str) -> None:
    scheduler = plain(name)
    scheduler.set_timesteps(6)
    levels = [
        s / alpha if alpha else float("inf")
        for alpha, s in (coordinates(scheduler, i) for i in range(len(scheduler.timesteps) + 1))
    ]
    distinct = [level for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]]
    assert levels[0] > 3
    assert levels[-1] < 0.2
    if scheduler.order == 1 and name != "PNDMScheduler":
        assert distinct == sorted(distinct, reverse=True)


# ---- refusals


def test_schedulers_that_cannot_be_corrected_are_told_which_can() -> None:
    class DDIMScheduler(diffusers.DDIMScheduler):
        pass

    class Mine(diffusers.DDIMScheduler):
        pass

    for scheduler in (diffusers.CMStochasticIterativeScheduler(), Mine(), object()):
        with pytest.raises(ConfigError, match=r"cannot be corrected; these can: DDPMScheduler, DDIMScheduler"):
            epsilon_scaling(scheduler, b=1.01)
    with pytest.raises(ConfigError, match="is not the class of diffusers of that name"):
        epsilon_scaling(DDIMScheduler(), b=1.01)


def test_refused_settings_leave_the_scheduler_as_it_was() -> None:
    scheduler = diffusers.DDIMScheduler()
    for settings in ({"b": 0.0}, {"b": -1.0}, {"flow_mode": "both"}):
        with pytest.raises(ConfigError):
            epsilon_scaling(scheduler, **settings)
    assert type(scheduler) is diffusers.DDIMScheduler
    assert not set(DEFAULTS) & set(scheduler.config)


def test_folders_without_a_scheduler(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no scheduler that can be read"):
        load_scheduler(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="names the scheduler class 'UNet2DModel'"):
        load_scheduler(tmp_path)
    diffusers.DDIMScheduler(beta_end=0.015).save_pretrained(tmp_path / "scheduler")
    assert load_scheduler(tmp_path, subfolder="scheduler").config.beta_end == 0.015


def test_video_models_with_a_level_per_token() -> None:
    def step(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(4)
        x = torch.ones(1, 6, 2)
        times = torch.full((1, 6), 500.0)
        return scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=times).prev_sample

    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    base = step(flow)
    assert torch.allclose(step(epsilon_scaling(flow, b=1.25)) - 1, (base - 1) / 1.25)
    for scheduler in (
        epsilon_scaling(flow, b=1.25, flow_mode="exact"),
        epsilon_scaling(flow, k=0.01),
        time_shift_sampler(flow, window=20, cutoff=0),
    ):
        with pytest.raises(ConfigError, match="per-token time steps has no single noise level"):
            step(scheduler)


def test_edm_takes_a_denoised_image_in_place_of_the_network_output() -> None:
    found = []
    for denoised in (None, True):
        scheduler = epsilon_scaling(diffusers.EDMEulerScheduler(), b=1.01)
        scheduler.set_timesteps(5)
        x, t = noise() * scheduler.init_noise_sigma, scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        if denoised:
            denoised = scheduler.precondition_outputs(x, noise().flip(0), scheduler.sigmas[0])
        found.append(scheduler.step(noise().flip(0), t, x, pred_original_sample=denoised).prev_sample)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
