"""Couplings of noise and images: permutations of least cost, within each condition; what plain transport does."""

import math
from itertools import permutations

import pytest
import torch

from diffdistill.coupling import (
    cheapest,
    check_coupling,
    condition_weight,
    cosine_distances,
    coupled,
    distances,
)
from diffdistill.errors import ConfigError


def world(count, dim=1, seed=0):
    """Noise N(0, 1), images in two classes at -2 and +2."""
    g = torch.Generator().manual_seed(seed)
    noise, labels = torch.randn(count, dim, generator=g), torch.randint(0, 2, (count,), generator=g)
    images = 4.0 * labels[:, None] - 2 + 0.3 * torch.randn(count, dim, generator=g)
    return noise, images, labels


def test_plain_transport_gives_a_class_its_half_of_the_noise_and_c2ot_all_of_it():
    """E[z | +] = sqrt(2 / pi) = .79788 after the first, 0 after the second: noise at its quantiles, even classes."""
    count = 200
    noise = torch.special.ndtri((torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count)
    labels = (torch.arange(count) // 2) % 2  # each class has noise of everywhere
    images = world(count)[1].abs() * (2 * labels[:, None] - 1)
    plain = noise[coupled(noise, images, kind="ot")][labels == 1]
    assert plain.mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.003)
    assert torch.equal(plain.sort(0).values, noise[count // 2 :])
    kept = noise[coupled(noise, images, labels)][labels == 1]
    assert kept.mean().item() == pytest.approx(0, abs=0.03)
    assert kept.var().item() == pytest.approx(1, abs=0.03)
    # The same rows of noise as before, in the order of the images: on a line, of least cost.
    order = kept.flatten()[images[labels == 1].flatten().argsort()]
    assert torch.equal(order, noise[labels == 1].flatten().sort().values)


@pytest.mark.parametrize("given", ["ot", "labels", "features"])
def test_it_is_a_permutation_and_never_dearer_than_leaving_the_noise_where_it_is(given):
    noise, images, labels = world(60, dim=12, seed=1)
    cond = {"ot": None, "labels": labels, "features": torch.randn(60, 5)}[given]
    order = coupled(noise, images, cond)
    assert torch.equal(order.sort().values, torch.arange(60))
    cost = distances(noise, images)
    if given == "features":
        apart = cosine_distances(cond)
        cost = cost + condition_weight(cost, apart) * apart
    assert cost[order, torch.arange(60)].sum() < cost.diagonal().sum() - 1
    assert torch.equal(coupled(noise, images, cond, kind="independent"), torch.arange(60))


def test_the_least_cost_is_that_of_all_permutations():
    noise, images, _ = world(6, dim=3, seed=2)
    cost = distances(noise, images)
    torch.testing.assert_close(cost, torch.cdist(noise.double(), images.double()) ** 2)
    table = cost.tolist()
    least = min(permutations(range(6)), key=lambda p: sum(table[p[j]][j] for j in range(6)))
    assert cheapest(cost).tolist() == list(least)


def test_within_a_class_is_a_weight_that_nothing_outweighs():
    """2503.10636 adds 1e8 times the distance of the class codes; one class is plain transport."""
    noise, images, labels = world(50, dim=4, seed=3)
    cost = distances(noise, images) + 1e8 * 2 * (labels[:, None] != labels[None, :])
    assert torch.equal(coupled(noise, images, labels), cheapest(cost))
    assert torch.equal(coupled(noise, images, torch.zeros(50, dtype=torch.long)), coupled(noise, images, kind="ot"))


def test_the_weight_of_features_leaves_a_fifth_of_the_pairs_to_choose_from():
    noise, images, _ = world(200, dim=3, seed=4)
    cond = torch.randn(200, 8, generator=torch.Generator().manual_seed(5))
    cost, apart = distances(noise, images), cosine_distances(cond)

    def part(weight):
        return (cost + weight * apart <= cost.diagonal()[:, None]).double().mean().item()

    weight = condition_weight(cost, apart)
    assert part(0) > 0.3
    assert 0.98 * 0.2 < part(weight) <= 0.2 < part(0.98 * weight)
    assert condition_weight(cost * 1e3, apart * 1e-3) == pytest.approx(1e6 * weight, rel=0.02)
    assert condition_weight(cost, apart, target=0.9) == 0.0
    assert condition_weight(cost, 0 * apart) >= 1e8  # all conditions alike: no weight changes anything
    # No weight: plain transport; all the weight: each noise stays with its own condition.
    assert torch.equal(cheapest(cost + 0.0 * apart), coupled(noise, images, kind="ot"))
    assert torch.equal(cheapest(cost + 1e8 * apart), torch.arange(200))


def test_what_cannot_be_coupled_is_refused(monkeypatch):
    noise, images, labels = world(8)
    with pytest.raises(ConfigError, match=r"coupling 'ot' gives each class a part of the noise only, .* use c2ot"):
        coupled(noise, images, labels, kind="ot")
    with pytest.raises(ConfigError, match="coupling 'best' is not known; it must be independent, ot or c2ot"):
        check_coupling("best", conditional=False)
    with pytest.raises(
        ConfigError, match=r"takes the noise of 64 images at a time, and the data has 8; set a smaller"
    ):
        check_coupling("c2ot", conditional=True, images=8, batch=64)
    with pytest.raises(ConfigError, match="8 rows of noise cannot be coupled with 7 images; give as many"):
        coupled(noise, images[:7])
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match=r"a coupling needs scipy .*pip install 'diffdistill\[eval\]'"):
        coupled(noise, images)
