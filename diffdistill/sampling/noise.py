"""Random numbers that belong to an image, not to a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.data.prompts import MOST_SEED
from diffdistill.errors import ConfigError
from diffdistill.machine import send
from diffdistill.noise_law import NoiseLaw


def image_seed(seed: int, index: int) -> int:
    """Seed of the generator of image `index` in a call with `seed`: (seed * 2654435761 + index) mod 2^32.

    The factor (Knuth's multiplicative hash, odd, so a bijection mod 2^32) keeps neighbouring seeds apart.
    ConfigError for a seed that is not 0 to 2^32 - 1: it would draw the images of another.
    """
    if not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"the seed is {seed}, and seeds of images are 0 to {MOST_SEED}; give one of these")
    return (seed * 2654435761 + index) % 2**32


def leak_seed(seed: int) -> int:
    """Seed of the generator of an image's signal leak, from that of its noise, which is as without a leak.

    >>> leak_seed(image_seed(0, 0)) != image_seed(0, 0)
    True
    """
    return image_seed(seed, 0x5EED)


class ImageNoise:
    """Standard normal noise for a batch, each image from its own CPU generator, in the order it is asked for.

    The numbers are those stock diffusers draws for `generator=[torch.Generator().manual_seed(s) for s in
    noise.seeds]`: it, too, draws one `(1, C, H, W)` tensor an image (diffusers' `randn_tensor`), on the CPU whatever
    the device of the model.

    seeds: of the generators, where they are not `image_seed(seed, index)`. start: factor of the first draw. signal:
    `(B, C, H, W)`, what the first draw holds besides. first: standard normal noise in place of the first draw's. law:
    of the noise that sampling begins with, the first draw; Student's t takes a generator's next number for its length.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        seeds: Sequence[int] | None = None,
        start: float = 1.0,
        signal: Tensor | None = None,
        first: Tensor | None = None,
        law: NoiseLaw | None = None,
    ) -> None:
        self.start, self.signal, self.first, self.law = start, signal, first, law or NoiseLaw()
        self.shape = tuple(shape)
        self.device = device
        self.seeds = [image_seed(seed, index) for index in indices] if seeds is None else list(seeds)
        self.generators = [torch.Generator().manual_seed(s) for s in self.seeds]

    def draw(self) -> Tensor:
        """The next noise of every image: float32 `(B, C, H, W)`."""
        z, self.first = self.first, None
        if z is None:
            z = torch.cat([torch.randn((1, *self.shape), generator=generator) for generator in self.generators])
        z, self.law = self.law.of(z, self.generators), NoiseLaw()
        factor, self.start = self.start, 1.0
        noise = factor * send(z, self.device)
        signal, self.signal = self.signal, None
        return noise if signal is None else noise + send(signal, self.device)
