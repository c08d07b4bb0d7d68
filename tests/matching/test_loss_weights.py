"""Weights of denoising score matching: closed forms, every parametrisation, and the laws that leave few draws."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad

from diffdistill.errors import ConfigError
from diffdistill.loss_weights import (
    LOSS_WEIGHTS,
    check_law,
    edm_monotonic_objective,
    edm_objective,
    edm_peaks,
    edm_weight,
    effective_share,
    get_loss_weight,
    sigmoid_objective,
)
from diffdistill.losses import native_weight
from diffdistill.process import EDM, VP, Flow, Level, LevelLaw

SIGMA = torch.logspace(-3, 2, 400, dtype=torch.float64)
MIDDLES = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
LAWS = [Level("lognormal"), Level("karras"), Level("loguniform"), Level("lognormal", mean=0.0, std=1.6)]


def test_the_maximum_of_edms_objective_is_where_it_is():
    (peak,) = edm_peaks(0.5)
    assert peak == pytest.approx(5.22727, abs=5e-6)
    assert -2 * math.log(peak) == pytest.approx(-3.30778, abs=5e-6)
    assert edm_objective(torch.tensor(peak).double()).item() == pytest.approx(0.271027, abs=5e-7)


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0, 1.2, 1.5, 3.0])
def test_the_monotonic_weight_is_the_largest_of_edms_from_there_on(sigma_data):
    """Also where there are two maxima: against a running maximum over a fine grid."""
    sigma = torch.logspace(-4, 4, 200001, dtype=torch.float64)
    plain = edm_objective(sigma, sigma_data) * 2 / sigma_data**2
    running = plain.cummax(0).values
    got = edm_monotonic_objective(sigma, sigma_data)
    torch.testing.assert_close(got, running, rtol=1e-7, atol=0)
    assert bool((got[:-1] <= got[1:]).all()), "it falls with the level"
    tops = int(((plain[1:-1] > plain[:-2]) & (plain[1:-1] > plain[2:])).sum())
    assert len(edm_peaks(sigma_data)) == tops == (2 if sigma_data in (1.2, 1.5) else 1)


def test_the_bound_of_a_gaussian_is_its_closed_form():
    """1/2 int E||eps - eps^||^2 dl over (-12, 12) = 1/2 ln((1 + s^2 e^12) / (1 + s^2 e^-12)), under two laws."""
    s = 0.5
    exact = 0.5 * math.log((1 + s**2 * math.exp(12)) / (1 + s**2 * math.exp(-12)))
    assert exact == pytest.approx(5.306864, abs=5e-7)
    for name in ("loguniform", "karras"):
        law = LevelLaw(Level(name, sigma_min=math.exp(-6), sigma_max=math.exp(6)))
        error = (lambda v: s**2 * v**2 / (s**2 + v**2))(law.sigma(MIDDLES).double())  # E (x0 - E[x0 | x_t])^2
        bound = (get_loss_weight("elbo").of(law, MIDDLES) * error).mean()
        assert bound.item() == pytest.approx(exact, abs=1e-5), name


@pytest.mark.parametrize("name", ["sigmoid", "edm_monotonic"])
def test_an_objective_is_the_same_under_every_law(name):
    weight, s = get_loss_weight(name), 0.5
    lowest, highest = 0.002, 80.0

    def integrand(snr):
        sigma = torch.tensor(math.exp(-snr / 2)).double()
        return 0.5 * (weight.objective(sigma, s) * s**2 / (s**2 + sigma**2)).item()

    edge = [-2 * math.log(v) for v in (highest, edm_peaks(s)[0], 1.0, lowest)]
    exact = sum(quad(integrand, a, b, epsabs=1e-9)[0] for a, b in pairwise(edge))
    for law in (Level("loguniform"), Level("karras")):
        u_law = LevelLaw(law)
        sigma = u_law.sigma(MIDDLES).double()
        got = (weight.of(u_law, MIDDLES) * s**2 * sigma**2 / (s**2 + sigma**2)).mean().item()
        assert got == pytest.approx(exact, rel=1e-5)


def test_below_its_maximum_the_monotonic_weight_is_edms_under_edms_law():
    law = LevelLaw(Level("lognormal"))
    u = torch.tensor([0.01, 0.3, 0.9, 0.99, 0.999])
    got, edm = get_loss_weight("edm_monotonic").of(law, u), edm_weight(law.sigma(u))
    torch.testing.assert_close(got[:4], edm[:4], rtol=1e-4, atol=0)
    assert got[4] > 1.2 * edm[4]
    assert (law.sigma(MIDDLES) > edm_peaks()[0]).double().mean().item() == pytest.approx(0.0087, abs=1e-4)


def test_the_same_weight_in_every_parametrisation():
    """Of an error of the network's own output: eps sqrt(1 / SNR) and min(SNR, 5) / SNR; v: min(SNR, 5) / (SNR + 1)."""
    snr = SIGMA**-2
    debiased, min_snr = (get_loss_weight(name).factor(SIGMA, 0.5) for name in ("debiased", "min_snr"))

    def of(process, weight):
        return weight / native_weight(process, SIGMA)

    eps, v, x0 = (VP(torch.tensor([0.9, 0.1]), kind) for kind in ("epsilon", "v_prediction", "sample"))
    torch.testing.assert_close(of(eps, debiased), snr.rsqrt())
    torch.testing.assert_close(of(eps, min_snr), snr.clamp(max=5) / snr)
    torch.testing.assert_close(of(v, min_snr), snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(of(x0, min_snr), snr.clamp(max=5))
    torch.testing.assert_close(of(Flow(), debiased), SIGMA / (1 + SIGMA) ** 2)
    torch.testing.assert_close(of(EDM(), edm_weight(SIGMA)), torch.ones_like(SIGMA))
    torch.testing.assert_close(sigmoid_objective(SIGMA), torch.sigmoid(2 - snr.log()))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.law}-{law.mean}")
def test_no_weight_moves_the_optimum(law):
    """Of an exact class, D = k(sigma) x_t, each level's best k is s^2 / (s^2 + sigma^2): for a positive weight."""
    for weight in LOSS_WEIGHTS.values():
        values = weight.of(LevelLaw(law), MIDDLES[::50])
        assert bool((values > 0).all() & values.isfinite().all()), weight.name


def test_the_share_of_the_draws_that_count():
    shares = {n: effective_share(w, LevelLaw(Level("lognormal"))) for n, w in LOSS_WEIGHTS.items()}
    wanted = {"edm": 1.0, "debiased": 0.845, "min_snr": 0.607, "sigmoid": 0.825, "edm_monotonic": 0.999}
    assert {n: round(shares[n], 3) for n in wanted} == wanted
    assert shares["elbo"] < 0.01
    # In closed form: ELBO under ln sigma uniform in [a, b], g proportional to s^2 / (s^2 + sigma^2).
    a, b, s = 0.002, 80.0, 0.5

    def antiderivative(v):  # of s^2 / (s^2 + v^2) and of its square, over d ln v
        first = math.log(v) - 0.5 * math.log(v * v + s * s)
        return first, first + 0.5 * s * s / (v * v + s * s)

    one, two = (antiderivative(b)[i] - antiderivative(a)[i] for i in (0, 1))
    exact = one**2 / (two * math.log(b / a))
    assert effective_share(get_loss_weight("elbo"), LevelLaw(Level("loguniform"))) == pytest.approx(exact, rel=1e-3)


def test_a_law_that_leaves_few_draws_is_refused_and_the_one_that_is_named_is_taken():
    for weight in LOSS_WEIGHTS.values():
        check_law(weight, LevelLaw(Level(weight.law)))
    for name, law in (("elbo", "lognormal"), ("min_snr", "uniform"), ("edm_monotonic", "uniform")):
        with pytest.raises(ConfigError, match=f"loss_weight '{name}' leaves .* '{law}' .* set level.law="):
            check_law(get_loss_weight(name), LevelLaw(Level(law)))
    with pytest.raises(ConfigError, match="loss_weight 'snr' is not known; it must be one of edm, debiased"):
        get_loss_weight("snr")
