"""The law of the noise that a network is trained under: Gaussian, or Student's t (PFGM++, 2302.04265).

PFGM++ sees an image of N numbers as charges in N + D dimensions, whose field it follows. The kernel that noises is

    p(x | x0) ∝ (||x - x0||^2 + r^2)^(-(N + D) / 2),        r = sigma sqrt(D),

which is Student's t in N dimensions with D degrees of freedom:

    x = x0 + sigma z sqrt(D / chi^2_D),        z ~ N(0, 1) and one chi^2 an image.

Everything else of EDM stays (levels, preconditioning, loss, the equation dx / dsigma = (x - D(x, sigma)) / sigma), and
so does EDM itself for D to infinity. E ||x - x0||^2 = N sigma^2 D / (D - 2), so D must be above 2. The released code
draws the length by a Beta law that it clips to [1e-3, 1 - 1e-3], another law where D is small; here nothing is
clipped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from diffdistill.errors import ConfigError
from diffdistill.machine import send
from diffdistill.process import per_sample

KEY = "noise"  # in a model's metadata and in diffdistill.json


@dataclass(frozen=True)
class NoiseLaw:
    """law: gaussian or student_t; dimension: D of Student's t, above 2.

    Raises ConfigError for another law or dimension.

    >>> z = torch.ones(2, 3, 8, 8)
    >>> NoiseLaw().of(z) is z
    True
    >>> heavy = NoiseLaw("student_t", 128.0).of(z)  # one factor an image
    >>> bool((heavy == heavy[:, :1, :1, :1]).all()), bool(heavy[0, 0, 0, 0] == heavy[1, 0, 0, 0])
    (True, False)
    """

    law: Literal["gaussian", "student_t"] = "gaussian"
    dimension: float | None = None

    def __post_init__(self) -> None:
        known = self.law == "gaussian" or (self.law == "student_t" and self.dimension is not None)
        if not known or (self.dimension is not None and not 2 < self.dimension < float("inf")):
            raise ConfigError(
                f"noise law '{self.law}' with the dimension {self.dimension} is unknown; use gaussian, or student_t "
                f"with a dimension above 2"
            )

    @property
    def heavy(self) -> bool:
        """Whether the noise is another than Gaussian."""
        return self.law == "student_t"

    @property
    def record(self) -> dict[str, Any]:
        """For diffdistill.json: nothing where the noise is Gaussian."""
        return {KEY: {"law": self.law, "dimension": self.dimension}} if self.heavy else {}

    @classmethod
    def of_record(cls, metadata: Mapping[str, Any]) -> "NoiseLaw":
        """That of a model with this metadata."""
        return cls(**metadata.get(KEY, {}))

    def factors(self, count: int, generator: Generator | None = None) -> Tensor:
        """sqrt(D / chi^2_D), float32 `(count,)` on the CPU, drawn from a generator of the CPU, None: torch's own.

        chi^2_D is twice a Gamma(D / 2, 1), drawn in float64 on the CPU, so that a device without it will do.
        """
        assert self.dimension is not None
        half = torch.full((count,), self.dimension / 2, dtype=torch.float64)
        return (half / torch._standard_gamma(half, generator=generator)).sqrt().float()

    def of(self, z: Tensor, generators: Sequence[Generator] | None = None) -> Tensor:
        """The noise of this law that standard normal z `(B, C, H, W)` makes, of variance D / (D - 2), on z's device.

        generators: of the CPU, one an image; None: torch's own, from which every process draws the whole batch.
        """
        if not self.heavy:
            return z
        if generators is None:
            factors = self.factors(len(z))
        else:
            factors = torch.cat([self.factors(1, generator) for generator in generators])
        return per_sample(send(factors, z.device), z) * z
