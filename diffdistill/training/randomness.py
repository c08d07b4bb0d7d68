"""Randomness as a function of (seed, step): a resumed run needs no generator state."""

import torch


def mix(seed: int, *counters: int) -> int:
    """A 63-bit seed from a run's seed and counters (splitmix64 finaliser): neighbouring steps are unrelated."""
    value = seed & (2**64 - 1)
    for counter in counters:
        value = (value + 0x9E3779B97F4A7C15 * (counter + 1)) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one training step, in every process alike: what is drawn is the whole batch's."""
    torch.manual_seed(mix(seed, step, 0))
