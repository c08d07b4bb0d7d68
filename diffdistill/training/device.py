"""Where a run computes, and in which precision."""

from contextlib import AbstractContextManager

import torch
from accelerate import PartialState
from torch import Tensor

from diffdistill.errors import ConfigError


class Device:
    """The device accelerate finds, and the autocast of `mixed_precision`.

    Weights, losses, score differences, averages and moments are float32 always; only the networks' forward passes are
    cast.
    """

    def __init__(self, mixed_precision: str, num_threads: int | None = None):
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.name = PartialState().device
        if mixed_precision == "fp16" and self.name.type == "cpu":
            raise ConfigError("mixed_precision 'fp16' needs a GPU; use 'no' or 'bf16' on this machine")
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.name.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def put(self, images: Tensor | None, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """A batch on the device."""
        return None if images is None else images.to(self.name), None if labels is None else labels.to(self.name)
