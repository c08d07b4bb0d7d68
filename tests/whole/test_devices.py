"""Which device is taken, named or not, and what is asked of one that a machine lacks."""

import pytest
import torch

from diffdistill import devices
from diffdistill.devices import default_device, pick_device
from diffdistill.errors import ConfigError


@pytest.fixture
def there(monkeypatch):
    """A machine with so many accelerators of a kind; returns the indices that were set."""
    chosen = []

    def of(kind, count=1):
        found = None if kind is None else torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
        return chosen

    for name in ("ACCELERATE_USE_CPU", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return of


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_accelerator_is_taken_where_nobody_names_a_device(kind, there, monkeypatch):
    there(kind)
    assert pick_device(None) == pick_device("auto") == default_device() == torch.device(kind)
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert default_device() == torch.device("cpu")
    assert pick_device(kind) == torch.device(kind)  # asked for by name


@pytest.mark.parametrize("kind", [None, "meta"])
def test_without_one_that_is_known_it_is_the_cpu(kind, there):
    there(kind)
    assert pick_device(None) == torch.device("cpu")


def test_one_of_several(there, monkeypatch):
    chosen = there("cuda", 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert default_device() == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert default_device() == torch.device("cuda:1")
    assert chosen == [1]


@pytest.mark.parametrize(
    ("kind", "count", "asked", "allowed"),
    [
        ("cuda", 2, "cuda:2", "cuda:0, cuda:1, cpu"),
        ("cuda", 1, "xpu", "cuda:0, cpu"),
        ("mps", 1, "cuda", "mps, cpu"),
        (None, 0, "mps", "cpu"),
    ],
)
def test_a_device_that_is_not_there(kind, count, asked, allowed, there):
    there(kind, count)
    with pytest.raises(ConfigError, match=f"device '{asked}' is not on this machine; use {allowed}, or leave it out"):
        pick_device(asked)


def test_memory_of_a_device_that_does_not_count(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no allocator")

    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.accelerator, name, refuse)
    there = torch.device("mps")
    devices.forget_peak(there)
    assert (devices.held_memory(there), devices.peak_memory(there)) == (0, 0)
