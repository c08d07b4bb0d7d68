"""The order of training images: a pure function of (seed, epoch), so that resuming needs only the step."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WORD = 2**64 - 1


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Indices (batch_size,), int64, of the batch of one step, counted from 0.

    Position p = step * batch_size + j of the endless stream is element p mod n of the permutation of epoch p // n,
    so every image comes once an epoch and a batch may straddle two. No history is needed: any step can be asked first.
    Raises ValueError for n or batch_size below 1 and a negative step.

    >>> epoch = torch.cat([batch_indices(6, batch_size=2, seed=0, step=step) for step in range(3)])
    >>> sorted(epoch.tolist())
    [0, 1, 2, 3, 4, 5]
    >>> torch.equal(batch_indices(6, batch_size=2, seed=0, step=1), epoch[2:4])
    True
    """
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"n and batch_size are at least 1 and step at least 0, not {n}, {batch_size}, {step}")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = np.divmod(positions, n)
    order = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        order[chosen] = permutation(n, seed, int(epoch))[places[chosen]]
    return torch.from_numpy(order)


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 .. n - 1 keyed by (seed, epoch): the ranks of n counter-based 64-bit hashes.

    Integer arithmetic of our own rather than a library's generator, whose stream may change between versions.
    """
    key = splitmix(splitmix(seed & WORD) ^ (epoch & WORD))
    hashes = splitmix_array(np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key))
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    order.setflags(write=False)  # it is cached
    return order


def splitmix(word: int) -> int:
    """SplitMix64's output function (Steele, Lea, Flood 2014): a bijection of 64-bit words that scatters them."""
    return int(splitmix_array(np.array([(word + 0x9E3779B97F4A7C15) & WORD], dtype=np.uint64))[0])


def splitmix_array(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
