"""Laws of the noise level and the weights made of them: slopes, and the integral that `expansion` stands for."""

import math

import numpy as np
import pytest
import torch
from by_hand import LOG_SIGMAS, process_named
from worlds import GaussianNetwork

from diffdistill.denoiser import Denoiser
from diffdistill.matching.level_weights import expansion_weight
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.sid import SiD
from diffdistill.process import Level, LevelLaw

LOW, HIGH = 0.1, 4.0
LAWS = {
    "karras": Level(law="karras", sigma_min=LOW, sigma_max=HIGH, rho=4.0),
    "karras, its middle": Level(law="karras", sigma_min=0.002, sigma_max=80.0, u_min=0.1, u_max=0.8),
    "uniform": Level(law="uniform", sigma_min=LOW, sigma_max=HIGH),
    "loguniform": Level(law="loguniform", sigma_min=LOW, sigma_max=HIGH),
    "lognormal": Level(law="lognormal", mean=-0.4, std=0.8),
    "shifted": Level(law="shifted", shift=2.0),
    "timestep": Level(law="timestep", u_min=0.02, u_max=0.98),
}


def law_of(name):
    process = process_named("epsilon")
    return LevelLaw(LAWS[name], process.sigma_min, process.sigma_max, process)


@pytest.mark.parametrize("name", LAWS)
def test_the_slope_of_a_law_is_its_finite_difference(name):
    """Where it is smooth: between training steps the law `timestep` has corners."""
    law = law_of(name)
    u = torch.linspace(0.05, 0.95, 31, dtype=torch.float64)
    if name == "timestep":
        u = ((u * 999).floor() + 0.5) / 999
        u = (u - 0.02) / 0.96
        u = u[(u > 0.05) & (u < 0.95)]
    h = 2e-4
    difference = (law.sigma(u + h).double() - law.sigma(u - h).double()) / (2 * h)
    torch.testing.assert_close(law.slope(u).double(), difference, rtol=2e-3, atol=1e-6)
    assert bool((law.slope(u) > 0).all())


@pytest.mark.parametrize("name", LAWS)
def test_the_law_is_written_as_its_own_formula(name):
    u = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    t = 2 * u / (1 + u)
    want = {
        "karras": lambda: (LOW**0.25 + u * (HIGH**0.25 - LOW**0.25)) ** 4,
        "karras, its middle": lambda: (0.002 ** (1 / 7) + (0.1 + 0.7 * u) * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7,
        "uniform": lambda: LOW + u * (HIGH - LOW),
        "loguniform": lambda: LOW ** (1 - u) * HIGH**u,
        "lognormal": lambda: (-0.4 + 0.8 * torch.special.ndtri(u)).exp(),
        "shifted": lambda: t / (1 - t),
        "timestep": lambda: torch.tensor(
            np.exp(np.interp(999 * (0.02 + 0.96 * u.numpy()), np.arange(1000), LOG_SIGMAS))
        ),
    }[name]()
    torch.testing.assert_close(law_of(name).sigma(u).double(), want, rtol=2e-5, atol=0)


def ends(name):
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return law_of(name).sigma(u).double().tolist()


def kl(mean, scale, mean_p, scale_p, sigma):
    v, v_p = scale**2 + sigma**2, scale_p**2 + sigma**2
    return 0.5 * (math.log(v_p / v) + (v + (mean - mean_p) ** 2) / v_p - 1)


STUDENT, TEACHER = (0.3, 0.35), (0.0, 0.5)


@pytest.mark.parametrize("name", LAWS)
def test_with_the_expansions_weight_every_law_has_one_objective_the_divergence_itself(name):
    """E_u[w E||D_F - D_T||^2] = integral of sigma J d(sigma) = KL at the lowest level - KL at the highest."""
    law, cells = law_of(name), 20_000
    u = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    sigma = law.sigma(u).double()
    (m, s), (m_p, s_p) = STUDENT, TEACHER
    v, v_p = s**2 + sigma**2, s_p**2 + sigma**2
    # x_t ~ N(m, v); D = x_t + sigma^2 score; the gap is sigma^2 ((m - x_t) / v - (m_p - x_t) / v_p).
    gap = sigma**4 * (((m - m_p) / v_p) ** 2 + v * (1 / v_p - 1 / v) ** 2)
    value = (expansion_weight(law, u).double() * gap).mean().item()
    low, high = ends(name)
    want = kl(m, s, m_p, s_p, low) - kl(m, s, m_p, s_p, high)
    assert value == pytest.approx(want, rel=2e-3)


@pytest.mark.parametrize("name", ["karras", "loguniform", "uniform"])
def test_the_steps_gradient_with_it_is_that_of_the_divergence(name):
    """Fisher form, alpha = 1/2: half of d KL / d(mean, scale), lowest less highest level, under any law."""
    (m, s), (m_p, s_p) = STUDENT, TEACHER
    networks = [Denoiser(GaussianNetwork(*pair, sample_size=64), process_named("edm")) for pair in (TEACHER, STUDENT)]
    law = law_of(name)
    settings = SiD(name="sid", alpha=0.5, level_weight="expansion")
    method = DistributionMatching(settings.choices(), *networks, law, law)
    torch.manual_seed(0)
    z = torch.randn(256, 1, 64, 64)
    gradient, _ = method.student_gradient(m + s * z, None, 0.0)
    got = gradient.mean().item(), (gradient * z).mean().item()
    low, high = ends(name)
    h = 1e-5
    want = [
        0.5 * sum(sign * (kl(m + a, s + b, m_p, s_p, at) - kl(m - a, s - b, m_p, s_p, at)) / (2 * h)
                  for at, sign in ((low, 1), (high, -1)))
        for a, b in ((h, 0.0), (0.0, h))
    ]  # fmt: skip
    assert got == pytest.approx(want, rel=0.04)
