"""What metrics look at in each image by themselves: some numbers an image, without features."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.prompts import spread
from diffdistill.errors import DataError

LIMIT = 10_000  # real images that are looked at
AT_ONCE = 256


class Looks:
    """`Metric.look` of several metrics, by their names.

    >>> looks = Looks({"darkest": lambda images: images.flatten(1).amin(1, keepdim=True)})
    >>> looks(torch.tensor([[[[3, 7]]], [[[9, 8]]]], dtype=torch.uint8))
    {'darkest': tensor([[3.],
            [8.]], dtype=torch.float64)}
    """

    def __init__(self, functions: Mapping[str, Callable[[Tensor], Tensor]]):
        self.functions = dict(functions)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images uint8 `(B, C, H, W)` -> numbers `(B, k)` by name, float64 on the CPU; DataError for anything else."""
        return {name: _rows(name, function(images), len(images)) for name, function in self.functions.items()}

    def of_real(self, images: ImageSet) -> dict[str, Tensor]:
        """The same of all images of a reference, or of LIMIT evenly spaced ones: `(M, k)`."""
        places = spread(range(len(images)), LIMIT)
        parts = [self(images.images[places[i : i + AT_ONCE]]) for i in range(0, len(places), AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.functions}


def _rows(name: str, given: Any, count: int) -> Tensor:
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != count:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise DataError(
            f"metric '{name}' saw {shape} in {count} images: some numbers an image, ({count}, k), are needed"
        )
    return given.detach().cpu().double()  # float64 on the CPU alone: some accelerators have none
