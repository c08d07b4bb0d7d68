"""Random draws of images that do not depend on their order: each image is ranked by what it shows.

Two sets may share images, as a set and the same set in another order do. Places say nothing of that; what the features
are does, to their last bit. So an image has one rank in both sets, and those of the lowest ranks in one have no image
in common with those of the highest in the other.
"""

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.order import splitmix, splitmix_array

ENTRIES = 2**16  # hashed at a time: few enough that they stay in the processor's cache


def content_keys(features: Tensor) -> np.ndarray:
    """A 64-bit word of each row of `(N, d)`, uint64 `(N,)`; rows that are equal have different ones, as if numbered.

    The words of a set are a function of its rows, whatever their order.
    """
    places = splitmix_array(np.arange(1, features.shape[1] + 1, dtype=np.uint64))
    step = max(1, ENTRIES // max(1, features.shape[1]))
    parts = [_words(_bits(part), places) for part in features.split(step)] if len(features) else []
    words = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    order = np.argsort(words, kind="stable")
    first = np.concatenate([[True], words[order][1:] != words[order][:-1]])[: len(words)]
    numbers = np.arange(len(words)) - np.maximum.accumulate(np.where(first, np.arange(len(words)), 0))
    words[order] ^= splitmix_array(numbers.astype(np.uint64))  # of 0 it is 0
    return words


def _bits(features: Tensor) -> np.ndarray:
    x = np.ascontiguousarray(features.detach().to("cpu", torch.float64).numpy()) + 0.0  # -0 is 0
    return x.view(np.uint64)


def _words(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    return splitmix_array(splitmix_array(bits ^ places).sum(axis=1, dtype=np.uint64))


def ranked(keys: np.ndarray, seed: int) -> Tensor:
    """A random order of the images of these keys, int64 `(N,)`: a function of the seed and of the images."""
    return torch.from_numpy(np.argsort(_ranks(keys, seed), kind="stable"))


def lowest(keys: np.ndarray, seed: int, n: int) -> Tensor:
    """`ranked(keys, seed)[:n]` without ordering the others, 0 < n < N."""
    ranks = _ranks(keys, seed)
    places = np.argpartition(ranks, n - 1)[:n]
    return torch.from_numpy(places[np.argsort(ranks[places])])


def highest(keys: np.ndarray, seed: int, n: int) -> Tensor:
    """`ranked(keys, seed)[-n:]` likewise."""
    ranks = _ranks(keys, seed)
    places = np.argpartition(ranks, -n)[-n:]
    return torch.from_numpy(places[np.argsort(ranks[places])])


def _ranks(keys: np.ndarray, seed: int) -> np.ndarray:
    return splitmix_array(keys ^ np.uint64(splitmix(seed % 2**64)))
