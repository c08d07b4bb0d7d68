"""What every metric asks of its features, and the number that carries its standard error."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import DataError

Array = Tensor | np.ndarray


class Estimate(float):
    """A float that knows its standard error (NaN: unknown); `value, error = estimate` unpacks both."""

    standard_error: float

    def __new__(cls, value: float, standard_error: float = math.nan) -> "Estimate":
        self = super().__new__(cls, value)
        self.standard_error = float(standard_error)
        return self

    @classmethod
    def mean_of(cls, values: Tensor) -> "Estimate":
        """The mean of independent values `(N,)` and its standard error, NaN for one value."""
        error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
        return cls(float(values.mean()), error)

    def __iter__(self) -> Iterator[float]:
        return iter((float(self), self.standard_error))

    def __repr__(self) -> str:
        return f"{float(self):.6g} ± {self.standard_error:.2g}"

    def record(self) -> dict[str, Any]:
        """Value, error and the 95 % interval of a normal law, for JSON; None for what is not known."""
        error = self.standard_error
        known = error == error
        return {
            "value": float(self),
            "standard_error": error if known else None,
            "interval": [self - 1.96 * error, self + 1.96 * error] if known else None,
        }


def as_features(features: Array, name: str = "features", minimum: int = 2, *, small: bool = False) -> Tensor:
    """Features `(N, d)` as a float64 tensor on the CPU; DataError unless finite, two-dimensional and N >= minimum.

    small: those of float32 stay so, for who makes them float64 a few at a time.
    """
    x = torch.as_tensor(features).detach()
    x = x.to("cpu", torch.float32 if small and x.dtype == torch.float32 else torch.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError(f"{name} have shape {tuple(x.shape)}: they must be (N, d), one row an image")
    if len(x) < minimum:
        raise DataError(f"{name} hold {len(x)} images: at least {minimum} are needed")
    if x.numel() and not torch.stack(x.aminmax()).isfinite().all():  # NaN is both; `isfinite` of all is as large
        raise DataError(f"{name} are NaN or infinite for {int((~x.isfinite()).any(1).sum())} of {len(x)} images")
    return x


def as_pair(real: Array, fake: Array, minimum: int = 2, *, small: bool = False) -> tuple[Tensor, Tensor]:
    """Both sets as `as_features`; DataError if their numbers of features differ."""
    x, y = (
        as_features(real, "features of the first set", minimum, small=small),
        as_features(fake, "features of the second set", minimum, small=small),
    )
    if x.shape[1] != y.shape[1]:
        raise DataError(f"the sets have {x.shape[1]} and {y.shape[1]} features: use one extractor for both")
    return x, y
