"""Where a run computes, and in which precision."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from diffdistill.devices import default_device, fast_bf16
from diffdistill.errors import ConfigError
from diffdistill.machine import cores, keep_freed_memory, send


class Device:
    """The device of this process (`devices.default_device`), and the autocast of `mixed_precision`.

    Weights, losses, score differences, averages and moments are float32 always; only the networks' forward passes are
    cast. `auto` is bf16 where `fast_bf16` says so, else no.
    """

    def __init__(self, mixed_precision: str, num_threads: int | None = None):
        if num_threads is not None:
            if num_threads > (most := max(64, 4 * cores())):
                raise ConfigError(f"num_threads is {num_threads} and there are {cores()} cores; use at most {most}")
            torch.set_num_threads(num_threads)
        self.name = default_device()
        if self.name.type == "cpu":
            keep_freed_memory()
        if mixed_precision == "auto":
            mixed_precision = "bf16" if fast_bf16(self.name.type) else "no"
        if mixed_precision == "fp16" and self.name.type == "cpu":
            raise ConfigError("mixed_precision 'fp16' needs a GPU; use 'no' or 'bf16' on this machine")
        self.precision = mixed_precision
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]

    def autocast(self) -> AbstractContextManager[None]:
        """One pass of a network. Autocast's cache would keep a copy of every weight until its end, for a second use
        that no network here makes.
        """
        on = self.dtype is not None
        return torch.autocast(self.name.type, self.dtype or torch.bfloat16, enabled=on, cache_enabled=False)

    def put(self, images: Tensor | None, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """A batch on the device."""
        return None if images is None else send(images, self.name), None if labels is None else send(labels, self.name)
