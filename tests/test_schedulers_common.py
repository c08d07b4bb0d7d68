"""What a scheduler of diffusers promises, asked of each corrected one: config, files, steps, noise, whole loops."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from gaussian import run

from diffdistill import schedulers
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.schedulers import (
    BASES,
    coordinates,
    epsilon_scaling,
    load_scheduler,
    time_shift_sampler,
)
from diffdistill.schedulers.correction import DEFAULTS
from diffdistill.schedulers.families import position, solver_step

# CosineDPMSolverMultistepScheduler cannot be made without torchsde.
NAMES = [name for name in BASES if not name.startswith("Cosine")]
ADD_NOISE = [name for name in NAMES if name != "FlowMatchHeunDiscreteScheduler"]
SETTINGS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False, "variance_type": "fixed_large"},
}


def plain(name: str, **settings: Any) -> Any:
    return getattr(diffusers, name)(**SETTINGS.get(name, {}), **settings)


def corrected(name: str) -> Any:
    """Both corrections where the solver takes both, none of them the identity."""
    scheduler = epsilon_scaling(plain(name), b=1.004, k=1e-4)
    if BASES[name].time_shift:
        scheduler = time_shift_sampler(scheduler, window=30, cutoff=200, data_variance=0.3)
    return scheduler


def noise(batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def drawn(scheduler: Any, steps: int = 6, **settings: Any) -> torch.Tensor:
    """A whole loop; samplers that draw noise draw the same."""
    torch.manual_seed(0)
    return run(scheduler, noise(**settings), steps)


@pytest.mark.parametrize("name", NAMES)
def test_without_corrections_it_is_the_base_to_the_last_bit(name: str) -> None:
    expected = drawn(plain(name))
    assert torch.equal(drawn(epsilon_scaling(plain(name), b=1.0)), expected)
    assert torch.equal(drawn(epsilon_scaling(plain(name), knots=[(0.0, 1.0), (2.0, 1.0)])), expected)
    if BASES[name].time_shift:
        assert torch.equal(drawn(time_shift_sampler(plain(name), window=0, cutoff=0)), expected)
        # A window that no state may use leaves the steps alone as well.
        idle = time_shift_sampler(plain(name), window=30, cutoff=1000)
        assert torch.equal(drawn(idle), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_loop_is_finite_and_not_the_base(name: str) -> None:
    found = drawn(corrected(name))
    assert found.shape == noise().shape
    assert torch.isfinite(found).all()
    assert not torch.equal(found, drawn(plain(name)))
    again = corrected(name)
    assert torch.equal(drawn(again), found)
    assert torch.equal(drawn(again), found), "the second run of one object is the first"


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_draws_the_same(name: str, tmp_path: Path) -> None:
    scheduler = corrected(name)
    scheduler.save_pretrained(tmp_path)
    cls = getattr(schedulers, f"Corrected{name}")
    assert type(scheduler) is cls
    expected = drawn(scheduler)
    for loaded in (cls.from_pretrained(tmp_path), load_scheduler(tmp_path)):
        assert type(loaded) is cls
        assert {key: loaded.config[key] for key in DEFAULTS} == {key: scheduler.config[key] for key in DEFAULTS}
        assert torch.equal(drawn(loaded), expected)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["epsilon_scale"] == 1.004


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_base_to_whoever_asks(name: str) -> None:
    base, scheduler = getattr(diffusers, name), corrected(name)
    assert isinstance(scheduler, base)
    for method in ("step", "set_timesteps"):
        found = inspect.signature(getattr(type(scheduler), method)).parameters
        assert list(found) == list(inspect.signature(getattr(base, method)).parameters)
    assert set(inspect.signature(type(scheduler).__init__).parameters) == {
        *inspect.signature(base.__init__).parameters,
        *DEFAULTS,
    }
    assert torch.equal(drawn(copy.deepcopy(scheduler)), drawn(scheduler))


@pytest.mark.parametrize("name", NAMES)
def test_compatibles_take_the_config_and_bring_it_back(name: str) -> None:
    scheduler = corrected(name)
    assert type(scheduler) in scheduler.compatibles
    assert {cls.__name__ for cls in plain(name).compatibles} <= {cls.__name__ for cls in scheduler.compatibles}
    # Through the plain class and back: diffusers keeps keys that a class does not know.
    there = getattr(diffusers, name).from_config(scheduler.config)
    assert type(there) is getattr(diffusers, name)
    back = type(scheduler).from_config(there.config)
    assert torch.equal(drawn(back), drawn(scheduler))


def test_a_correction_follows_the_config_to_another_solver() -> None:
    ddim = epsilon_scaling(plain("DDIMScheduler"), b=1.01, knots=None)
    euler = schedulers.CorrectedEulerDiscreteScheduler.from_config(ddim.config)
    assert torch.equal(
        drawn(euler), drawn(epsilon_scaling(diffusers.EulerDiscreteScheduler.from_config(ddim.config), b=1.01))
    )


@pytest.mark.parametrize("name", NAMES)
def test_results_as_tuple_and_as_object_are_equal(name: str) -> None:
    results = []
    for return_dict in (True, False):
        scheduler = corrected(name)
        scheduler.set_timesteps(5)
        t, x = scheduler.timesteps[0], noise()
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        torch.manual_seed(0)
        results.append(scheduler.step(x * 0.1, t, x, return_dict=return_dict))
    assert torch.equal(results[0].prev_sample, results[1][0])
    assert results[0].prev_sample.shape == noise().shape


@pytest.mark.parametrize("name", ADD_NOISE)
def test_adding_noise_is_the_bases(name: str) -> None:
    found = []
    for scheduler in (plain(name), corrected(name)):
        scheduler.set_timesteps(10)
        times = scheduler.timesteps[[3, 5]]
        if hasattr(scheduler, "add_noise"):
            found.append(scheduler.add_noise(noise(), noise().flip(0), times))
        else:
            found.append(scheduler.scale_noise(noise(), times, noise().flip(0)))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_and_is_scaled_nonetheless(name: str, dtype: torch.dtype) -> None:
    """lambda = 1.001 is less than half a unit in the last place of bf16: computed in it, it would be no change."""
    results = {}
    for b in (1.0, 1.001):
        scheduler = epsilon_scaling(plain(name), b=b)
        scheduler.set_timesteps(5)
        x = noise(dtype=dtype)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, scheduler.timesteps[0])
        torch.manual_seed(0)
        results[b] = scheduler.step(noise().flip(0).to(dtype), scheduler.timesteps[0], x)
    if name != "SASolverScheduler":  # its base turns half precision into float32
        assert results[1.001].prev_sample.dtype == dtype
    for key, value in results[1.001].items():
        if value is not None:
            assert value.dtype == results[1.0][key].dtype or value.dtype == dtype


# ---- the solver's step


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
