"""The noise process: conversions are exact, laws have the distribution they claim."""

import math

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, DDPMScheduler, EDMEulerScheduler

from diffdistill.errors import ConfigError
from diffdistill.process import (
    EDM,
    VP,
    Flow,
    Level,
    LevelLaw,
    karras_levels,
    per_sample,
    prediction_from_x0,
    x0_from_prediction,
)

KINDS = ["epsilon", "v_prediction", "sample", "flow"]


def images(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.9, math.sqrt(1 - 0.81)), (0.05, math.sqrt(1 - 0.0025)), (0.3, 0.7), (1.0, 0.02)]
)
def test_round_trip_of_every_prediction(kind, alpha, sigma):
    x0, eps = images().double()
    a, s = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    x = a * x0 + s * eps
    prediction = prediction_from_x0(x0, x, a, s, kind)
    assert torch.allclose(x0_from_prediction(prediction, x, a, s, kind), x0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_textbook_targets(kind):
    x0, eps = images().double()
    a, s = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    target = {"epsilon": eps, "v_prediction": a * eps - s * x0, "sample": x0, "flow": eps - x0}[kind]
    assert torch.allclose(prediction_from_x0(x0, a * x0 + s * eps, a, s, kind), target, atol=1e-12)


def processes():
    table = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").alphas_cumprod
    return [EDM(), EDM(0.7, 1.0), Flow(), *(VP(table, kind) for kind in ("epsilon", "v_prediction", "sample"))]


@pytest.mark.parametrize("process", processes(), ids=lambda p: f"{type(p).__name__}-{getattr(p, 'kind', '')}")
def test_processes_invert_in_float32(process):
    x0, eps = images()
    sigma = torch.tensor([0.02, 0.1, 0.5, 2.5, 10.0, 50.0])
    x = x0 + per_sample(sigma, x0) * eps
    back = process.to_x0(process.from_x0(x0, x, sigma), x, sigma)
    # An epsilon at level sigma carries sigma times its own rounding error into x0.
    assert ((back - x0).abs().flatten(1).amax(1) <= 1e-6 * (1 + sigma) * 4).all()


def test_vp_time_inverts_the_table():
    process = VP(DDPMScheduler(num_train_timesteps=1000).alphas_cumprod, "epsilon")
    steps = torch.tensor([0, 1, 250, 500, 998, 999])
    sigma = process.log_sigmas[steps].exp()
    assert torch.allclose(process.time(sigma), steps.float(), atol=1e-3)


def test_zero_terminal_snr_leaves_the_infinite_level_out():
    table = DDPMScheduler(num_train_timesteps=100, rescale_betas_zero_snr=True).alphas_cumprod
    assert math.isfinite(VP(table, "v_prediction").sigma_max)


def test_edm_is_the_arithmetic_of_the_stock_schedulers():
    x0, eps = images()
    x, sigma = x0 + 1.7 * eps, torch.full((6,), 1.7)
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    stock = EDMEulerScheduler(sigma_data=0.5)
    assert torch.allclose(
        EDM().to_x0(output, x, sigma), stock.precondition_outputs(x, output, torch.tensor(1.7)), atol=1e-6
    )
    assert torch.allclose(EDM().to_network(x, sigma)[0], stock.precondition_inputs(x, torch.tensor(1.7)), atol=1e-6)
    time = CMStochasticIterativeScheduler().sigma_to_t(1.7)
    assert torch.allclose(EDM().to_network(x, sigma)[1], torch.full((6,), float(time)), atol=1e-4)


def test_karras_levels_are_the_stock_ones():
    stock = CMStochasticIterativeScheduler(num_train_timesteps=18)
    assert torch.allclose(karras_levels(18, 0.002, 80.0), stock.sigmas.double()[:18], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "quantiles"),
    [
        # The quantiles at 5, 50 and 95 % of published laws.
        (Level(law="lognormal"), (0.042, 0.301, 2.17)),
        (Level(law="karras", u_max=0.8), (0.005, 0.97, 18.8)),
        (Level(law="karras", u_min=0.02, u_max=0.98), (0.009, 2.5, 55)),
    ],
)
def test_level_laws_have_the_published_quantiles(settings, quantiles):
    got = LevelLaw(settings).sigma(torch.tensor([0.05, 0.5, 0.95]))
    assert torch.allclose(got, torch.tensor(quantiles), rtol=0.07)


@pytest.mark.parametrize("law", ["lognormal", "karras", "uniform", "loguniform", "shifted"])
def test_draws_are_stratified_and_monotone_in_u(law):
    torch.manual_seed(0)
    u, sigma = LevelLaw(Level(law=law)).draw(64)
    assert sorted((u * 64).long().tolist()) == list(range(64))
    assert torch.equal(sigma.argsort(), u.argsort())


def test_uniform_laws_are_uniform_in_sigma_and_in_its_logarithm():
    u = torch.tensor([0.0, 0.5, 1.0])
    uniform = LevelLaw(Level(law="uniform", sigma_min=1.0, sigma_max=9.0)).sigma(u)
    logarithmic = LevelLaw(Level(law="loguniform", sigma_min=1.0, sigma_max=9.0)).sigma(u)
    assert uniform.tolist() == pytest.approx([1.0, 5.0, 9.0])
    assert logarithmic.tolist() == pytest.approx([1.0, 3.0, 9.0])


def test_shifted_law_is_the_shifted_flow_time():
    sigma = LevelLaw(Level(law="shifted", shift=3.0)).sigma(torch.tensor([0.5]))
    assert sigma.item() == pytest.approx(3.0)  # t' = 1.5 / 2 = 0.75


def test_unknown_law_is_a_sentence():
    with pytest.raises(ConfigError, match="level law 'log_normal' is unknown; use lognormal, karras, uniform"):
        Level("log_normal")


def test_unknown_prediction_is_a_sentence():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="'score' is unknown; use epsilon"):
        x0_from_prediction(x, x, x, x, "score")
