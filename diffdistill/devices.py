"""Which accelerator a machine has, and what is asked of it: a device by its name, an end of its work, its memory.

All of it goes through `torch.accelerator`, which knows one kind of accelerator a process: NVIDIA's and AMD's GPUs
(both called cuda), Intel's (xpu), Apple's (mps). Where a device does not count its memory, the figures here are 0.
"""

import os
from typing import Any

import torch

from diffdistill.errors import ConfigError

KNOWN = ("cuda", "xpu", "mps")  # taken in this order where nobody names a device; else the CPU
CPU = torch.device("cpu")


def accelerator() -> str | None:
    """The kind of accelerator that networks run on here; None without one, and where `accelerate launch --cpu` says
    so.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        return None
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in KNOWN else None


def default_device() -> torch.device:
    """The accelerator, of several processes each its own; the CPU without one."""
    kind = accelerator()
    if kind is None:
        return CPU
    several, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_RANK"))
    if several in ("", "1") or not local.isdecimal() or int(local) >= torch.accelerator.device_count():
        return torch.device(kind)
    torch.accelerator.set_device_index(int(local))
    return torch.device(kind, int(local))


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device asked for; `default_device` where none is, or `auto`; ConfigError if this machine lacks it."""
    if name is None or name == "auto":
        return default_device()
    device = torch.device(name)
    if device.type not in KNOWN:
        return device
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type != device.type or (device.index or 0) >= torch.accelerator.device_count():
        raise ConfigError(f"device '{name}' is not on this machine; use {_there()}, or leave it out")
    return device


def _there() -> str:
    kind = accelerator()
    count = torch.accelerator.device_count() if kind else 0
    return ", ".join([*(kind if kind == "mps" else f"{kind}:{i}" for i in range(count)), "cpu"])


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked."""
    if device.type in KNOWN:
        torch.accelerator.synchronize(device)


def held_memory(device: torch.device) -> int:
    """Bytes of tensors on an accelerator now."""
    return _counted("memory_allocated", device)


def peak_memory(device: torch.device) -> int:
    """Most bytes of tensors on an accelerator at once, since the process began or `forget_peak`."""
    return _counted("max_memory_allocated", device)


def forget_peak(device: torch.device) -> None:
    _counted("reset_peak_memory_stats", device)


def _counted(what: str, device: torch.device) -> int:
    try:
        return int(getattr(torch.accelerator, what)(device) or 0)
    except (RuntimeError, NotImplementedError):  # it has no allocator that counts (Apple's)
        return 0


def total_memory(device: torch.device) -> int:
    """Bytes of memory that an accelerator has."""
    try:
        return int(torch.accelerator.get_memory_info(device)[1])
    except (RuntimeError, NotImplementedError):
        return int(torch.mps.recommended_max_memory()) if device.type == "mps" else 0


def name_of(device: torch.device) -> str:
    """What its maker calls it, as `NVIDIA H100 80GB HBM3`; the kind of device where it has no name."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if named is None else str(named(device))


def fast_bf16(kind: str) -> bool:
    """Whether the hardware makes autocast to bfloat16 pay: GPUs that have it, and CPUs with AMX tiles.

    AVX-512's bfloat16 instructions alone need not: on one CPU with them a small UNet took eight times as long with two
    threads as in float32 (docs/performance.md). Of Apple's GPUs nobody has looked.
    """
    if kind == "cpu":
        capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16"))
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "xpu" and bool(torch.xpu.is_bf16_supported(including_emulation=False))
