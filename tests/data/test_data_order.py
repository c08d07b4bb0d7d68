"""The order of training: permutations keyed by (seed, epoch), any step without history."""

import random

import numpy as np
import pytest
import torch

from diffdistill.data import batch_indices
from diffdistill.data.order import splitmix_array


def cases(count=60):
    rng = random.Random(7)
    for _ in range(count):
        yield rng.randint(1, 50), rng.randint(1, 70), rng.randint(0, 2**40)


def stream(n, batch_size, seed, steps):
    return torch.cat([batch_indices(n, batch_size, seed, step) for step in range(steps)])


def test_every_epoch_is_a_permutation_however_batches_straddle():
    for n, batch_size, seed in cases():
        epochs = 3
        order = stream(n, batch_size, seed, -(-epochs * n // batch_size))
        assert order.dtype == torch.int64
        for epoch in range(epochs):
            assert sorted(order[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_a_step_needs_no_history():
    for n, batch_size, seed in cases():
        forward = {step: batch_indices(n, batch_size, seed, step) for step in range(8)}
        steps = list(forward)
        random.Random(seed).shuffle(steps)
        for step in steps:
            batch_indices(n + 1, batch_size, seed + 1, step)  # another run between
            assert torch.equal(batch_indices(n, batch_size, seed, step), forward[step])


def test_the_stream_does_not_depend_on_the_batch_size():
    for n, batch_size, seed in cases():
        assert torch.equal(stream(n, batch_size, seed, 6), stream(n, 3 * batch_size, seed, 2))


def test_the_order_is_fixed_for_all_versions():
    """Integer arithmetic only: these numbers may never change, or a resumed run would see other data."""
    assert batch_indices(10, 10, 0, 0).tolist() == [0, 7, 8, 2, 5, 9, 4, 6, 3, 1]
    assert batch_indices(10, 4, 2**63 + 5, 10**9).tolist() == [9, 5, 3, 2]


def test_the_hash_is_splitmix64():
    """The first outputs of the generator of Steele, Lea and Flood for seed 0, as their paper's code gives them."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * k % 2**64 for k in (1, 2, 3)], dtype=np.uint64)
    assert splitmix_array(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_epochs_and_seeds_differ():
    n = 1000
    orders = [batch_indices(n, n, seed, epoch) for seed in range(4) for epoch in range(4)]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            # Two independent permutations agree in one place on average (Poisson).
            assert (first == second).sum() < 8


def test_places_are_uniform():
    """Over many epochs each element stands in each place equally often (chi-square, 3 sigma of its 81 freedoms)."""
    n, epochs = 10, 5000
    counts = torch.zeros(n, n)
    for epoch in range(epochs):
        counts[torch.arange(n), batch_indices(n, n, 3, epoch)] += 1
    expected = epochs / n
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - 81) < 3 * (2 * 81) ** 0.5


def test_a_returned_batch_may_be_written_to():
    first = batch_indices(8, 8, 0, 0)
    expected = first.clone()
    first.zero_()
    assert torch.equal(batch_indices(8, 8, 0, 0), expected)


@pytest.mark.parametrize(("n", "batch_size", "step"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_nonsense_is_refused(n, batch_size, step):
    with pytest.raises(ValueError, match="at least"):
        batch_indices(n, batch_size, 0, step)
