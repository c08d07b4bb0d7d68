"""DDO's loss against closed forms: what it is best at, its gradient at the reference, where one noise leads it."""

import math

import pytest
import torch

from diffdistill.alignment import ddo_loss
from diffdistill.parts.verification import checks_ddo
from diffdistill.parts.verification.checks_ddo import EXACT, REFERENCE, best_states, crossing, slope_at


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(1.0, 1.0, (0.5, 0.3, 0.2)), (1.0, 0.5, (0.64301, 0.26231, 0.09467))]
)
def test_the_best_distribution_over_three_states(alpha, beta, expected):
    assert best_states(alpha, beta) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 6.0])
@pytest.mark.parametrize(("beta", "slope"), [(1.0, -0.08088), (0.1, -0.00809)])
def test_at_the_reference_the_gradient_is_that_of_denoising_the_data(alpha, beta, slope):
    """beta / 2 of it, and samples of an exact reference have no share in it, whatever alpha."""
    assert slope_at(REFERENCE, alpha, beta) == pytest.approx(slope, abs=5e-6)


@pytest.mark.parametrize(("beta", "best"), [(1.0, 0.8827), (0.1, 1.3703)])
def test_one_noise_an_image_leads_past_the_denoiser_of_the_data(beta, best):
    found = crossing(lambda k: slope_at(k, 1.0, beta, 40))
    assert found == pytest.approx(best, abs=1e-3)
    assert found > EXACT > REFERENCE


def test_the_checks_of_verify_hold():
    assert [check.quantity for check in checks_ddo.checks() if not check.ok] == []


def test_figures_of_the_discriminator():
    data, own = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([4.0, 5.0])
    output = ddo_loss(data, torch.tensor([2.0, 2.0]), own, torch.tensor([2.0, 4.0]), alpha=3.0, beta=0.5)
    assert output.ratio_data.tolist() == [1.0, 0.0]
    assert output.ratio_reference.tolist() == [-2.0, -1.0]
    assert output.acc.item() == pytest.approx((1 + 0.5 + 1 + 1) / 4)

    def soft(x):
        return math.log1p(math.exp(x))

    expected = (soft(-0.5) + soft(0.0)) / 2 + 3.0 * (soft(-1.0) + soft(-0.5)) / 2
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.loss.requires_grad
    assert not output.ratio_data.requires_grad


def test_half_precision_is_computed_in_float32():
    errors = torch.full((4, 2), 700.0, dtype=torch.bfloat16)
    assert ddo_loss(*errors, alpha=1.0, beta=0.05).loss.dtype == torch.float32
