"""What a metric of a model may look at: the model itself, and images that it makes of a given noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser


@dataclass
class Probe:
    """Everything that `Metric.probe` may look at.

    model, name: what is measured. draw: `(noise, places)` to images `(B, C, H, W)` in about [-1, 1] on the CPU: noise
    `(B, C, H, W)` standard normal on the CPU, and which class, or prompt, of those that are drawn each image shows;
    images of one place have the same further noise, where the sampler draws some. num_images: how many images may be
    made or looked at, None: as many as the metric takes. other: the model of the other half. reference: real images.
    """

    name: str
    model: Denoiser
    draw: Callable[[Tensor, Sequence[int]], Tensor]
    num_images: int | None = None
    seed: int = 0
    batch_size: int = 64
    other_name: str | None = None
    other: Denoiser | None = None
    reference: ImageSet | None = None
    warnings: list[str] = field(default_factory=list)
