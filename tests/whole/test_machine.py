"""What a machine says of itself, and what a container leaves of it."""

import os
import platform
import signal
import sys

import pytest

from diffdistill import machine


def groups(monkeypatch, tmp_path, lines, **limits):
    """A `/proc/self/cgroup` of these lines, and limits by the path below `/sys/fs/cgroup`."""
    (tmp_path / "cgroup").write_text(lines, encoding="utf-8")
    for name, value in limits.items():
        file = tmp_path / "fs" / name.replace("__", "/").replace("_in_", ".limit_in_").replace("_max", ".max")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("lines", "limits", "wanted"),
    [
        ("0::/a/b\n", {"a__b__memory_max": 2_000_000, "a__memory_max": "max"}, 2_000_000),
        ("0::/a/b\n", {"a__b__memory_max": "max", "a__memory_max": 3_000_000}, 3_000_000),
        ("0::/\n", {"memory_max": 4_000_000}, 4_000_000),
        ("12:cpu:/x\n5:memory:/job\n", {"memory__job__memory_in_bytes": 5_000_000}, 5_000_000),
        ("5:memory:/of/the/host\n", {"memory__memory_in_bytes": 6_000_000}, 6_000_000),
    ],
)
def test_the_least_limit_of_a_group_counts(monkeypatch, tmp_path, lines, limits, wanted):
    groups(monkeypatch, tmp_path, lines, **limits)
    assert machine.total_memory() == wanted


def test_no_limit_leaves_the_memory_of_the_machine(monkeypatch, tmp_path):
    groups(monkeypatch, tmp_path, "0::/\n", memory_max="max")
    assert machine.total_memory() == machine._of_machine()
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "absent")
    assert machine.total_memory() == machine._of_machine()


def test_a_system_that_says_nothing_limits_nothing(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "absent")
    assert machine.total_memory() == sys.maxsize
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_memory() == 0
    monkeypatch.delattr(os, "getloadavg")
    assert machine.load() == "an unknown number of"


def test_only_signals_that_there_are_are_asked_for(monkeypatch):
    monkeypatch.delattr(signal, "SIGUSR1", raising=False)
    names = [number.name for number in machine.stop_signals()]
    assert "SIGTERM" in names
    assert "SIGUSR1" not in names


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc, which says it too")
def test_peak_memory_is_in_bytes():
    with open("/proc/self/status", encoding="utf-8") as lines:
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert machine.peak_memory() == pytest.approx(kilobytes * 1024, rel=0.2)


def test_what_is_large_is_pinned_on_its_way_to_a_device_that_takes_copies(monkeypatch):
    import torch

    pinned = []
    monkeypatch.setattr(machine, "TAKES_COPIES", {"meta"})
    monkeypatch.setattr(machine, "PINS", {"meta"})
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor.numel()), tensor)[1])
    for tensor in (torch.zeros(1 << 14), torch.zeros(1 + (1 << 14)), torch.zeros(1 << 15, device="meta")):
        assert machine.send(tensor, "meta").device.type == "meta"
        machine.send(tensor, tensor.device)
    assert pinned == [1 + (1 << 14)]  # 64 KiB go at once, and what is there already needs nothing


FREED = """
import resource, sys
from diffdistill.machine import keep_freed_memory

def held():
    blocks = [b"1" * (4 << 20) for _ in range(30)]
    del blocks

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
held(), held()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_kept_for_the_next_step(python):
    """120 MB of blocks, freed and asked for again: 30,000 pages of 4 kB, unless they were kept."""
    own, kept = (python("-c", FREED, how).out.split() for how in ("as it is", "keep"))
    assert (own[0], kept[0]) == ("False", "True")
    assert int(own[1]) > 10_000
    assert int(kept[1]) < 1_000
    chosen = python("-c", FREED, "keep", MALLOC_TRIM_THRESHOLD_="1000000").out.split()
    assert chosen[0] == "False"
    assert int(chosen[1]) > 10_000
