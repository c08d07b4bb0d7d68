"""What differs from machine to machine, each asked for here alone: memory and its limits, cores, signals.

Windows has neither `resource` nor most of the signals, and a container has less memory than its machine.
"""

import math
import os
import platform
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WITHOUT_FLOAT64 = {"mps"}
# Devices whose driver takes a copy of the host's memory before `non_blocking` returns (CUDA, "API synchronization
# behavior": "copied to the staging memory"; torch calls AMD's GPUs so too). Of others nobody has looked.
TAKES_COPIES = {"cuda"}
# From more bytes than these, of memory that the system may move, the driver first waits for what was asked before
# (same page); from memory that is pinned it never does.
PINS, STAGED = {"cuda"}, 1 << 16
CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them (glibc, malloc.h)
STOPPING = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU", "SIGBREAK")


def total_memory() -> int:
    """Bytes of memory that this process may have: of the machine, or what its container or job is limited to."""
    return min([_of_machine(), *_limits()])


def _of_machine() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not say
        return sys.maxsize


def _limits() -> list[int]:
    """What control groups allow: version 2 by `memory.max`, version 1 by `memory.limit_in_bytes`, each level of it."""
    texts = _said("memory", "memory.max", "memory.limit_in_bytes")
    return [int(text) for text in texts if text.isdecimal() and int(text) > 0]  # else "max"


def _said(controller: str, new: str, old: str) -> list[str]:
    """What the files of a name say of this process's control groups; `new` in version 2, `old` in version 1."""
    found = []
    for file in _limit_files(controller, new, old):
        try:
            found.append(file.read_text("utf-8").strip())
        except (OSError, ValueError):
            continue
    return found


def _limit_files(controller: str, new: str, old: str) -> list[Path]:
    try:
        lines = OWN_GROUPS.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    files = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers == "":
            root, name = CGROUPS, new
        elif controller in controllers.split(","):
            root, name = CGROUPS / controller, old
        else:
            continue
        group = root / place.lstrip("/")
        # Within a container the path is often that of the machine, and the group itself lies at the root.
        files += [level / name for level in (group, *group.parents) if level.is_relative_to(root)]
    return files


def peak_memory() -> int:
    """Most bytes of memory this process ever held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what comes next; whether it does so: glibc, where nobody chose else.

    By itself it hands the top of its memory back at the end of every training step and fetches it again, page by page,
    in the next. The most that a process holds stays the same.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    import ctypes

    library = ctypes.CDLL(None)
    # Of a larger block the pages are handed back whatever is asked for; to set either ends their growth by themselves.
    return all([library.mallopt(MMAP_THRESHOLD, 32 << 20), library.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)])


def cores() -> int:
    """Cores of the machine; 1 where it does not say."""
    return os.cpu_count() or 1


def own_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores()
    shares = [text.split() for text in _said("cpu", "cpu.max", "cpu.cfs_quota_us")]
    quotas = [int(share[0]) / int(share[1]) for share in shares if len(share) == 2 and share[0].isdecimal()]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def neighbours() -> int:
    """How many processes of this run share this machine, as the launcher says; 1 without one."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def finest(device: "torch.device") -> "torch.dtype":
    """The finest floating numbers of a device: float64, or float32 where it has no others (Apple's GPUs, some of
    Intel's)."""
    import torch

    lacks = device.type in WITHOUT_FLOAT64
    if device.type == "xpu":
        lacks = not torch.xpu.get_device_properties(device).has_fp64
    return torch.float32 if lacks else torch.float64


def send(tensor: "torch.Tensor", device: "torch.device | str") -> "torch.Tensor":
    """The tensor on the device. From the CPU the host goes on at once where that is safe; else it would wait until
    all that the device was asked before is done.

    >>> import torch
    >>> send(torch.arange(2), "cpu")
    tensor([0, 1])
    """
    import torch

    kind = torch.device(device).type
    free = tensor.device.type == "cpu" and kind in TAKES_COPIES
    if free and kind in PINS and tensor.nbytes > STAGED:
        tensor = tensor.pin_memory()  # torch keeps it until the copy is made
    return tensor.to(device, non_blocking=free)


def load() -> str:
    """How many processes want to run, where the system says."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "an unknown number of"


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals by which a system, a terminal or a scheduler asks a process to end, of those there are."""
    return tuple(getattr(signal, name) for name in STOPPING if hasattr(signal, name))
