"""KID, precision/recall, Inception Score, CMMD, per-class distance, neighbours, bootstrap: known answers."""

from itertools import product
from math import exp, log
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation import cmmd, frechet_distance, inception_score, kernel_distance, prdc
from diffdistill.evaluation.draws import content_keys, ranked
from diffdistill.evaluation.frechet import fit, per_class_frechet
from diffdistill.evaluation.frechet_error import bootstrap_error
from diffdistill.evaluation.kernel import polynomial_mmd
from diffdistill.evaluation.memorisation import nearest_neighbours, neighbour_picture


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_mmd_is_the_double_sum_over_pairs():
    x, y = normal(6, 3, 0), normal(6, 3, 1, 0.4)

    def kernel(a: Tensor, b: Tensor) -> float:
        return float(a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i, j in product(range(6), repeat=2) if i != j]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs) / 30
    across = sum(kernel(a, b) for a in x for b in y) / 36
    assert polynomial_mmd(x, y) == pytest.approx(within - 2 * across, rel=1e-12)


def test_kernel_distance_of_one_law_is_zero_within_its_error():
    for seed in range(5):
        value, error = kernel_distance(normal(800, 16, seed), normal(800, 16, 100 + seed), subsets=30)
        assert abs(value) < 3 * error


def test_kernel_distance_of_a_set_with_itself_is_zero_within_its_error():
    x = normal(1000, 16, 0)
    value, error = kernel_distance(x, x, subsets=30)
    assert abs(value) < 3 * error


def test_kernel_distance_of_a_shift_has_a_closed_form():
    # With x ~ N(0, 1) and y ~ N(m, 1) in one dimension, k = (xy + 1)^3 = 1 + 3 xy + 3 (xy)^2 + (xy)^3, so MMD^2 is the
    # sum over powers p of c_p (E x^p - E y^p)^2.
    m = 0.5
    moments = [(3, m), (3, 1 + m**2 - 1), (1, m**3 + 3 * m)]
    exact = sum(c * gap**2 for c, gap in moments)
    value, error = kernel_distance(normal(4000, 1, 1), normal(4000, 1, 2, m), subsets=50)
    assert abs(value - exact) < 3 * error
    assert error < exact / 5


def test_standard_error_of_the_kernel_distance_covers_its_spread():
    values = [kernel_distance(normal(600, 4, s), normal(600, 4, 99 + s, 0.3), subsets=20) for s in range(20)]
    spread = float(torch.tensor([float(v) for v in values]).std())
    mean_error = sum(v.standard_error for v in values) / len(values)
    assert 0.6 * spread < mean_error < 2 * spread


def test_kernel_distance_depends_on_its_seed_only():
    x, y = normal(100, 4, 0), normal(100, 4, 1)
    assert kernel_distance(x, y, seed=3) == kernel_distance(x, y, seed=3)
    assert kernel_distance(x, y, seed=3) != kernel_distance(x, y, seed=4)
    with pytest.raises(DataError, match="hold 3 images: at least 4"):
        kernel_distance(x[:3], y)


def test_kernel_distance_does_not_depend_on_the_order_of_images():
    x, y = normal(300, 16, 0), normal(250, 16, 1)
    mixed = [part[torch.randperm(len(part), generator=torch.Generator().manual_seed(5))] for part in (x, y)]
    assert kernel_distance(*mixed, subsets=20) == kernel_distance(x, y, subsets=20)
    value, error = kernel_distance(x, mixed[0], subsets=20)
    assert (value, error) == tuple(kernel_distance(x, x, subsets=20))
    assert abs(value) < 2 * error
    value, error = kernel_distance(x, mixed[0][:200], subsets=20)  # part of the same images
    assert abs(value) < 2 * error


def test_equal_images_are_drawn_as_several():
    x = normal(40, 4, 0)
    keys = content_keys(torch.cat([x, x, x]))
    assert len(set(keys.tolist())) == 120
    assert set(content_keys(x).tolist()) < set(keys.tolist())
    assert set(content_keys(torch.cat([x, x, x]).flip(0)).tolist()) == set(keys.tolist())
    assert content_keys(-torch.zeros(1, 3)).tolist() == content_keys(torch.zeros(1, 3)).tolist()
    assert sorted(ranked(keys, 1).tolist()) == list(range(120))
    assert ranked(keys, 1).tolist() != ranked(keys, 2).tolist()


def test_disjoint_sets_share_nothing():
    assert prdc(normal(50, 4, 0), normal(60, 4, 1, 100)) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_equal_sets_share_everything():
    x = normal(80, 4, 2)
    found = prdc(x, x.clone())
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    # Each ball holds its centre and the four nearest others; the fifth lies on its rim.
    assert found["density"] == pytest.approx(1, rel=1e-12)


def test_a_mode_that_is_left_out_costs_recall_and_no_precision():
    left, right = normal(200, 2, 3), normal(200, 2, 4, 50)
    found = prdc(torch.cat([left, right]), normal(200, 2, 5))
    assert found["precision"] > 0.9
    assert 0.4 < found["recall"] <= 0.5
    assert 0.4 < found["coverage"] <= 0.5


def test_nested_sets_on_a_grid():
    # Real: the integers 0..19, balls of radius 1 for k = 1. Fake: eleven points from 4.1 to 4.9, balls of radius 0.08.
    real = torch.arange(20, dtype=torch.float64)[:, None]
    fake = 4.5 + 0.08 * torch.arange(-5, 6, dtype=torch.float64)[:, None]
    # Each fake point lies in the balls of 4 and 5 and in no other; no real point lies in a fake ball.
    assert prdc(real, fake, k=1) == {"precision": 1, "recall": 0, "density": 2, "coverage": 2 / 20}
    assert prdc(fake, real, k=1) == {"precision": 0, "recall": 1, "density": 0, "coverage": 0}


def test_prdc_is_the_definition():
    x, y, k = normal(40, 3, 6), normal(30, 3, 7, 0.5), 3
    real_radius = torch.cdist(x, x).sort(1).values[:, k]
    fake_radius = torch.cdist(y, y).sort(1).values[:, k]
    across = torch.cdist(y, x)
    inside = across < real_radius
    found = prdc(x, y, k)
    assert found["precision"] == pytest.approx(float(inside.any(1).double().mean()))
    assert found["density"] == pytest.approx(float(inside.sum()) / (k * 30))
    assert found["coverage"] == pytest.approx(float(inside.any(0).double().mean()))
    assert found["recall"] == pytest.approx(float((across < fake_radius[:, None]).any(0).double().mean()))


def test_prdc_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch):
    x, y = normal(100, 3, 8), normal(90, 3, 9, 0.3)
    whole = prdc(x, y)
    monkeypatch.setattr("diffdistill.evaluation.precision_recall.BLOCK", 700)
    assert prdc(x, y) == whole


def test_prdc_needs_more_images_than_neighbours():
    with pytest.raises(DataError, match="hold 5 images: at least 6"):
        prdc(normal(5, 2, 0), normal(9, 2, 1))


def test_inception_score_has_its_bounds():
    classes = torch.eye(4, dtype=torch.float64).repeat(25, 1)
    assert inception_score(classes, splits=1) == pytest.approx(4)
    assert inception_score(torch.full((40, 4), 0.25), splits=4) == pytest.approx(1)
    assert inception_score(classes[:1].repeat(10, 1), splits=1) == pytest.approx(1)


def test_inception_score_of_two_noisy_classes():
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    assert inception_score(p, splits=1) == pytest.approx(exp(log(2) + 0.9 * log(0.9) + 0.1 * log(0.1)))


def test_inception_score_refuses_what_is_no_probability():
    with pytest.raises(DataError, match="sum to 1"):
        inception_score(torch.ones(20, 3))
    with pytest.raises(DataError, match="cut into 10 splits"):
        inception_score(torch.full((4, 2), 0.5))


def test_cmmd_is_the_double_sum_over_directions():
    x, y = normal(7, 5, 10), normal(9, 5, 11, 0.5)
    a, b = (features / features.norm(dim=1, keepdim=True) for features in (x, y))

    def mean_kernel(p: Tensor, q: Tensor) -> float:
        return float((-torch.cdist(p, q).square() / 200).exp().mean())

    exact = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd(x, y) == pytest.approx(exact, rel=1e-8)
    assert cmmd(x, 5 * x) == pytest.approx(0, abs=1e-9)


def test_per_class_distance_is_the_distance_within_each_class():
    x, y = normal(90, 3, 12), normal(60, 3, 13, 0.2)
    real_labels, fake_labels = torch.arange(90) % 3, torch.arange(60) % 2
    found = per_class_frechet(x, real_labels, y, fake_labels)
    assert set(found) == {0, 1}
    assert found[1]["value"] == frechet_distance(x[1::3], y[1::2])
    assert (found[1]["n"], found[1]["n_reference"]) == (30, 30)
    with pytest.raises(DataError, match="class 7 has 0 real and 60 generated"):
        per_class_frechet(x, real_labels, y, torch.full((60,), 7))
    with pytest.raises(DataError, match="one label an image"):
        per_class_frechet(x, real_labels[:5], y, fake_labels)


def test_copies_are_found_and_new_samples_are_authentic():
    training = normal(2000, 6, 14)
    copies = nearest_neighbours(training, training[5:25] + 1e-6)
    assert copies.authentic == 0
    assert copies.index[:, 0].tolist() == list(range(5, 25))
    assert 0.35 < nearest_neighbours(training, normal(500, 6, 15)).authentic < 0.65
    assert nearest_neighbours(training, normal(50, 6, 16, 9)).authentic == 1


def test_neighbour_picture_shows_the_closest_first(tmp_path: Path):
    training = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fake = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    fake[1] = training[7]
    found = nearest_neighbours(training.flatten(1).double(), fake[:, 0].flatten(1).double(), k=2)
    neighbour_picture(tmp_path / "n.png", fake, training, found, rows=2)
    with Image.open(tmp_path / "n.png") as picture:
        assert picture.size == (64 * 3 + 4, 128)
        assert picture.crop((0, 0, 64, 64)).tobytes() == picture.crop((68, 0, 132, 64)).tobytes()


def test_bootstrap_error_is_the_spread_over_new_samples():
    reference = fit(normal(20_000, 4, 17))
    values = [frechet_distance(normal(20_000, 4, 17), normal(400, 4, 50 + s, 0.5)) for s in range(30)]
    spread = float(torch.tensor(values, dtype=torch.float64).std())
    error = bootstrap_error(reference, normal(400, 4, 18, 0.5), resamples=60)
    assert 0.7 * spread < error < 1.5 * spread
