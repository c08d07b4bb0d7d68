"""Every sampler, and the corrections of exposure bias: the CPU's images, and one wait a batch, for its images."""

from dataclasses import replace

import pytest
import torch
from standin import WAITS
from standin_runs import smallest

from diffdistill.sampling.generate import generate, run_plan
from diffdistill.sampling.leak_file import LeakFile
from diffdistill.sampling.plan import plan_sampling
from diffdistill.sampling.sampler import SAMPLERS
from diffdistill.sampling.signal_leak import fit_leak

# Solved by torch.linalg, or made of numbers on the device, within diffusers.
DIFFUSERS_WAITS = {"unipc", "deis"}
ROWS = 4


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """On the CPU a network is called with that many images, here with all: the same number, for the same bits."""
    monkeypatch.setattr("diffdistill.sampling.generate.CPU_ROWS", ROWS)


def model(sampler):
    if not SAMPLERS.get(sampler).for_students:
        return smallest()
    return smallest(3, metadata={"role": "student", "levels": [2.5, 0.7]})


def drawn(device, sampler, **more):
    settings = {} if SAMPLERS.get(sampler).for_students else {"steps": max(3, SAMPLERS.get(sampler).fewest)}
    request = {"num_images": ROWS, "batch_size": ROWS, "sampler": sampler} | settings | more
    network = model(sampler).to(device)
    WAITS.clear()
    ((images, _),) = generate(network, **request)
    return images


@pytest.mark.parametrize("sampler", SAMPLERS.names())
def test_a_sampler_draws_the_cpus_images_and_waits_for_them_alone(sampler, there):
    images = drawn(there, sampler)
    if sampler not in DIFFUSERS_WAITS:
        assert WAITS.count == 1, (WAITS.read, WAITS.sent)
    assert images.device.type == "cpu"
    assert torch.equal(images, drawn("cpu", sampler))


def test_guidance_and_epsilon_scaling(there):
    settings = {"guidance_scale": 2.0, "epsilon_scaling": "1.01"}
    images = drawn(there, "euler", **settings)
    assert WAITS.count == 1, (WAITS.read, WAITS.sent)
    assert torch.equal(images, drawn("cpu", "euler", **settings))


def test_a_signal_leak_goes_to_the_device_as_the_noise_does(there):
    law = fit_leak(torch.randn(5, *smallest().image_shape, generator=torch.Generator().manual_seed(0)))
    images = []
    for device in (there, "cpu"):
        network = smallest().to(device)
        plan = replace(plan_sampling(network, sampler="euler", steps=3), leak=LeakFile(law, "it", "", {}))
        WAITS.clear()
        images += [drawn for drawn, _ in run_plan(network, plan, num_images=ROWS, seed=0, batch_size=ROWS)]
        assert device == "cpu" or WAITS.count == 1, (WAITS.read, WAITS.sent)
    assert torch.equal(*images)


def test_time_shift_asks_once_an_image_and_step_for_its_noise(there):
    """Its answer is a time of the scheduler's, which is the host's."""
    settings = {"steps": 4, "time_shift_sampler": "40,100"}
    images = drawn(there, "vp_ddim", **settings)
    assert WAITS.count <= 1 + ROWS * 4
    assert torch.equal(images, drawn("cpu", "vp_ddim", **settings))
