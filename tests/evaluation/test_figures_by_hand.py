"""Small numbers by hand: errors of figures, CLIP scores, counts of a class, times of a flow, wrong labels."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from diffdistill.alignment import mapo_loss
from diffdistill.alignment.pairs import times
from diffdistill.evaluation import inception_score
from diffdistill.evaluation.clip_similarity import score_of
from diffdistill.evaluation.frechet import per_class_frechet
from diffdistill.evaluation.memorisation import nearest_neighbours


def test_the_inception_scores_error_is_that_of_the_mean_of_its_splits():
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    scores = torch.tensor([float(inception_score(part, splits=1)) for part in p.split(2)])
    value, error = inception_score(p, splits=3)
    assert value == pytest.approx(float(scores.mean()))
    assert error == pytest.approx(float(scores.std()) / 3**0.5)


def test_a_clip_score_is_a_hundred_times_the_cosine_and_never_negative():
    cosines = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
    value, error = score_of(cosines)
    assert value == pytest.approx((30 + 0 + 10 + 0) / 4)
    assert error == pytest.approx(float(torch.tensor([30.0, 0.0, 10.0, 0.0]).std()) / 2)


def test_distances_of_neighbours_are_euclidean():
    training = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]], dtype=torch.float64)
    found = nearest_neighbours(training, torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64), k=2)
    torch.testing.assert_close(found.distance, torch.tensor([[0.0, 5.0], [3.0, 4.0]], dtype=torch.float64))


def test_the_numbers_of_a_class_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (12, 7))
    found = per_class_frechet(real, torch.zeros(12, dtype=torch.long), fake, torch.zeros(7, dtype=torch.long))
    assert (found[0]["n"], found[0]["n_reference"]) == (7, 12)


class FlowMatchEulerDiscreteScheduler:  # by its name alone
    class config:
        num_train_timesteps, shift = 1000, 3.0


def test_times_of_a_flow_are_logit_normal_and_shifted():
    z = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    u = 0.5 * (1 + torch.erf(z / 2**0.5))  # the normal law's distribution function
    plain = 1 / (1 + (-z).exp())
    for given, factor in ((None, 3.0), (1.0, 1.0)):
        t, alpha, sigma, kind = times(FlowMatchEulerDiscreteScheduler(), u, given)
        expected = factor * plain / (1 + (factor - 1) * plain)
        torch.testing.assert_close(sigma, expected)
        torch.testing.assert_close(alpha, 1 - expected)
        torch.testing.assert_close(t, (1000 * expected).float())
        assert kind == "flow"


def test_a_label_that_is_wrong_with_chance_e_has_the_other_order_with_weight_e():
    win, lose = torch.tensor([0.4]), torch.tensor([0.9])

    def ordered(one, other):
        def phi(x):
            return x / torch.expm1(x)

        return one - 0.2 * logsigmoid(3.0 * (phi(0.5 * one) - phi(0.5 * other)))

    expected = 0.9 * ordered(win, lose) + 0.1 * ordered(lose, win)
    found = mapo_loss(win, lose, c=0.5, margin_scale=3.0, margin_weight=0.2, label_smoothing=0.1).loss
    torch.testing.assert_close(found, expected.mean())
