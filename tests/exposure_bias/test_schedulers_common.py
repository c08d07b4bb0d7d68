"""What a scheduler of diffusers promises, asked of each corrected one: config, files, steps, noise, whole loops."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from stock_schedulers import NAMES, drawn, noise, plain

from diffdistill import schedulers
from diffdistill.parts.exposure_bias.scheduler import DEFAULTS
from diffdistill.schedulers import (
    BASES,
    epsilon_scaling,
    load_scheduler,
    time_shift_sampler,
)

ADD_NOISE = [name for name in NAMES if name != "FlowMatchHeunDiscreteScheduler"]


def corrected(name: str) -> Any:
    """Both corrections where the solver takes both, none of them the identity."""
    scheduler = epsilon_scaling(plain(name), b=1.004, k=1e-4)
    if BASES[name].time_shift:
        scheduler = time_shift_sampler(scheduler, window=30, cutoff=200, data_variance=0.3)
    return scheduler


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


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_in_half_precision_is_the_one_in_float32(name: str) -> None:
    """Solvers of third order remember two steps; lambda is 1 at the last one, where nothing is scaled."""
    order = {"solver_order": 3} if "solver_order" in inspect.signature(getattr(diffusers, name)).parameters else {}
    ends = {}
    for dtype in (torch.float32, torch.float16):
        scheduler = epsilon_scaling(plain(name, **order), b=1.0, k=1e-3)
        scheduler.set_timesteps(8)
        torch.manual_seed(0)
        x = (noise() * float(getattr(scheduler, "init_noise_sigma", 1))).to(dtype)
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step((0.3 * seen).to(dtype), t, x).prev_sample
            assert x.dtype == dtype
        ends[dtype] = x.float()
    difference = (ends[torch.float16] - ends[torch.float32]).abs().max()
    assert difference < 5e-3 * ends[torch.float32].abs().max()
