"""The discrete form: its curriculum, its law of levels, its distance, and what it converges to on Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch
from linear import SPREAD, Linear, nodes, noise_at, teacher_of

from diffdistill.consistency.continuous import ContinuousConsistency
from diffdistill.consistency.discrete import (
    DiscreteConsistency,
    chances,
    even_in_time,
    intervals_at,
    pseudo_huber,
    solver_step,
)
from diffdistill.consistency.settings import HUBER, Continuous, Discrete
from diffdistill.errors import ConfigError
from diffdistill.process import EDM, VP, Flow, karras_levels

TOP = 80.0


def test_the_number_of_levels_doubles_as_the_paper_says():
    counts = [intervals_at(k, 400_000, 10, 1280) + 1 for k in range(0, 400_000, 50_000)]
    assert counts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert intervals_at(49_999, 400_000, 10, 1280) == 10
    assert intervals_at(399_999, 400_000, 10, 1280) == 1280
    assert [intervals_at(k, 10, 3, 20) for k in (0, 3, 6, 9)] == [3, 6, 12, 20]  # log2(20 / 3) = 2.7: K' = 3, then all
    assert [intervals_at(k, 7, 18, 18) for k in (0, 6)] == [18, 18]


def test_a_curriculum_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="take 8 stages and there are 7 steps"):
        DiscreteConsistency(Discrete(), EDM(), 0.002, TOP, total=7)
    with pytest.raises(ConfigError, match="intervals is 20, 10"):
        Discrete(intervals=(20, 10))


@pytest.mark.parametrize("mean", [50.0, -50.0])
def test_a_law_that_misses_the_levels_is_refused(mean):
    """Its chances are 0 / 0, of which the top interval came; the continuous form drew the end of its levels alone."""
    with pytest.raises(ConfigError, match=r"has 0.0 % of its mass where .* 0.002 to 80; give a mean between -6.2 and"):
        DiscreteConsistency(Discrete(mean=mean), EDM(), 0.002, TOP, total=100)
    with pytest.raises(ConfigError, match="the law of levels"):
        ContinuousConsistency(Continuous(mean=mean), 0.002, TOP, total=100)
    DiscreteConsistency(Discrete(mean=mean, grid="time"), EDM(), 0.002, TOP, total=100)  # which has no such law


def test_levels_have_the_chances_of_the_discretised_law():
    found = chances(karras_levels(11, 0.002, TOP).flip(0), -1.1, 2.0)
    wanted = [0.06263, 0.18174, 0.2455, 0.21349, 0.14245, 0.0806, 0.04108, 0.01958, 0.00894, 0.00398]
    assert found.tolist() == pytest.approx(wanted, abs=6e-6)


def test_intervals_are_drawn_by_their_chances_between_neighbouring_levels():
    objective = DiscreteConsistency(Discrete(intervals=(10, 10)), EDM(), 0.002, TOP, total=10)
    torch.manual_seed(0)
    noise = objective.draw(torch.zeros(1000, 1, 1, 1), step=0)
    levels = objective.levels(0).float()
    index = torch.searchsorted(levels, noise.low * 0.999)
    assert torch.equal(noise.low, levels[index])
    assert torch.equal(noise.high, levels[index + 1])
    counts = torch.bincount(index, minlength=10) / 1000
    assert torch.allclose(counts, chances(levels, -1.1, 2.0), atol=2.1e-3)  # stratified: within two of a thousand
    assert noise.eps.std() == pytest.approx(1, abs=0.1)


def test_the_distance_is_over_the_whole_image():
    assert [HUBER * math.sqrt(d) for d in (3 * 32 * 32, 3 * 64 * 64, 28 * 28)] == pytest.approx(
        [0.029930, 0.059860, 0.015120], abs=5e-7
    )
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    norms = torch.stack([torch.linalg.vector_norm(a[i] - b[i]) for i in range(2)])
    assert torch.allclose(pseudo_huber(a, b, 0.3), (norms**2 + 0.09).sqrt() - 0.3)


@pytest.mark.parametrize(("points", "spread"), [(11, 0.3764), (21, 0.4338), (81, 0.4826), (1281, 0.4989)])
def test_training_on_data_ends_at_the_known_spread(points, spread):
    """For x0 ~ N(0, 0.5^2) each level's best slope follows from the one below; discretisation alone loses spread."""
    levels, slopes = karras_levels(points, 0.002, TOP).flip(0), [1.0]
    x0, eps, weight = nodes(4)
    for k in range(points - 1):
        noise = noise_at(float(levels[k + 1]), float(levels[k]), eps)
        settings = Discrete(intervals=(points - 1, points - 1), huber=1e3 * float(levels[k + 1]))
        objective = DiscreteConsistency(settings, EDM(), 0.002, TOP, total=10)

        def pull(slope, k=k, noise=noise, objective=objective):
            slope = torch.tensor(slope, dtype=torch.float64, requires_grad=True)
            model = Linear(lambda sigma: torch.where(sigma > levels[k] * 1.0000001, slope, slopes[k]))
            loss = (weight * objective.losses(model, SPREAD * x0, None, noise, 0)).sum()
            return torch.autograd.grad(loss, slope)[0].item()

        at_0, at_1 = pull(0.0), pull(1.0)  # a parabola's, for c is large
        slopes.append(at_0 / (at_0 - at_1))
    assert slopes[-1] * math.sqrt(SPREAD**2 + TOP**2) == pytest.approx(spread, abs=1e-3)


def test_a_teachers_steps_lead_to_the_spread_of_the_data():
    """Heun's steps of the exact flow keep the spread where training on data loses a thirtieth of it."""

    def reached(count, heun):
        x = torch.full((1, 1, 1, 1), math.sqrt(SPREAD**2 + TOP**2), dtype=torch.float64)
        levels = karras_levels(count, 0.002, TOP)
        for high, low in pairwise(levels):
            x = solver_step(teacher_of(SPREAD), x, high.reshape(1), low.reshape(1), None, heun)
        return x.item()

    assert reached(81, heun=True) == pytest.approx(0.5, abs=2e-3)
    one = solver_step(teacher_of(1.0), torch.ones(1, 1, 1, 1), torch.tensor([2.0]), torch.tensor([1.0]), None, False)
    assert one.item() == pytest.approx(1 - (1 - 0.2) / 2)


def test_the_target_is_the_model_at_the_lower_level_and_the_input_at_the_lowest():
    objective = DiscreteConsistency(Discrete(intervals=(10, 10)), EDM(), 0.002, TOP, total=10)
    levels = objective.levels(0)
    x0, eps, _ = nodes(2)
    for k, at_low in ((0, None), (4, 3.0)):
        noise = noise_at(float(levels[k + 1]), float(levels[k]), eps)
        slope = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        model = Linear(
            lambda sigma, slope=slope, k=k: torch.where(sigma > levels[k] * 1.0000001, slope, 3.0 * slope / 2)
        )
        losses = objective.losses(model, x0, None, noise, 0)
        high, low = (x0 + level * eps for level in (levels[k + 1], levels[k]))
        wanted = pseudo_huber(2.0 * high, low if at_low is None else at_low * low, HUBER)
        assert torch.allclose(losses, wanted)
        (gradient,) = torch.autograd.grad(losses.sum(), slope)  # of the upper level alone
        distance = 2.0 * high - (low if at_low is None else at_low * low)
        assert gradient.item() == pytest.approx((distance / (distance**2 + HUBER**2).sqrt() * high).sum().item())
    assert torch.allclose(objective.weights(noise), 1 / (levels[5] - levels[4]).expand(4))


def test_levels_even_in_the_networks_time_are_drawn_and_weighted_alike():
    table = VP(torch.linspace(0.99, 0.01, 101), "epsilon")
    steps = table.time(even_in_time(table, 5, table.sigma_min, table.sigma_max).float())
    assert steps.tolist() == pytest.approx([0, 20, 40, 60, 80, 100], abs=1e-2)
    ratios = even_in_time(EDM(), 4, 0.002, 80.0)
    assert (ratios[1:] / ratios[:-1]).tolist() == pytest.approx([(80 / 0.002) ** 0.25] * 4)
    objective = DiscreteConsistency(Discrete((10, 10), "time"), Flow(), 1e-3, 999.0, total=10)
    torch.manual_seed(0)
    noise = objective.draw(torch.zeros(100, 1, 1, 1), step=0)
    t = noise.high / (1 + noise.high)
    assert torch.bincount((t * 10).round().long(), minlength=11).tolist() == [0, *[10] * 10]
    assert torch.equal(objective.weights(noise), torch.ones(100))
