"""Where the numbers of one tensor go in another: the map is read off rows of counting numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

# Digits to this base are exact in every precision that networks have, bfloat16 among them.
BASE = 256
DIGITS = 3
PROBES = 2 + DIGITS


class Unreadable(Exception):
    """A pipeline does something that is not read off; the message says what, as the rest of a sentence."""


def probes(shape: Sequence[int]) -> Tensor:
    """Rows `(PROBES, *shape)`: zeros, ones, and the digits of each entry's number, lowest first.

    >>> probes((2,)).tolist()[1:3]
    [[1.0, 1.0], [0.0, 1.0]]
    """
    count = prod(shape)
    if count > BASE**DIGITS:
        raise Unreadable(f"its images have {count} numbers, and {BASE**DIGITS} can be followed")
    number = torch.arange(count)
    digits = [(number // BASE**place % BASE).float() for place in range(DIGITS)]
    return torch.stack([torch.zeros(count), torch.ones(count), *digits]).reshape(PROBES, *shape)


@dataclass(frozen=True)
class Gather:
    """out[j] = scale[j] in[index[j]] + offset[j], in every row `(B, *taken)` -> `(B, *shape)`.

    >>> turned = Gather.read(2 * probes((2, 3)).transpose(1, 2) + 1, (2, 3))
    >>> x = torch.randn(4, 2, 3)
    >>> torch.equal(turned(x), 2 * x.transpose(1, 2) + 1)
    True
    >>> torch.allclose(turned.inverse()(turned(x)), x, atol=1e-6)
    True
    """

    index: Tensor
    scale: Tensor
    offset: Tensor
    taken: tuple[int, ...]
    shape: tuple[int, ...]
    _at: dict[torch.device, tuple[Tensor | None, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, seen: Tensor, taken: Sequence[int]) -> "Gather":
        """From what became of `probes(taken)`, `(PROBES, *shape)`; Unreadable where it was another kind of map."""
        rows = seen.detach().cpu().double().flatten(1)
        offset, scale = rows[0], rows[1] - rows[0]
        if (scale == 0).any():
            raise Unreadable("numbers are lost between its noise, its network and its images")
        digits = (rows[2:] - offset) / scale
        whole = digits.round()
        index = sum(
            (whole[place] * BASE**place for place in range(DIGITS)), torch.zeros(rows.shape[1], dtype=torch.float64)
        ).long()
        fits = (digits - whole).abs().max() < 0.2 and index.min() >= 0 and index.max() < prod(taken)
        if not fits:
            raise Unreadable("numbers are mixed between its noise, its network and its images")
        return cls(index, scale.float(), offset.float(), tuple(taken), tuple(seen.shape[1:]))

    def __call__(self, x: Tensor) -> Tensor:
        index, scale, offset = self._on(x.device)
        y = x.flatten(1)
        y = y if index is None else y[:, index]
        y = y if scale is None else y * scale.to(x.dtype)
        y = y if offset is None else y + offset.to(x.dtype)
        return y.reshape(len(x), *self.shape)

    def _on(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """Index, scale and offset on a device, None for those that change nothing."""
        if device not in self._at:
            count = prod(self.taken)
            kept = torch.equal(self.index, torch.arange(count)), bool((self.scale == 1).all()), not self.offset.any()
            tensors = self.index, self.scale, self.offset
            self._at[device] = tuple(
                None if same else tensor.to(device) for tensor, same in zip(tensors, kept, strict=True)
            )
        return self._at[device]

    def inverse(self) -> "Gather":
        """Raises Unreadable for a map that leaves numbers out, or takes one twice."""
        back = self.index.argsort()
        if not torch.equal(self.index[back], torch.arange(prod(self.taken))):
            raise Unreadable("what its network is given, or what its images are made of, is not the noise alone")
        scale = 1 / self.scale[back]
        return Gather(back, scale, -self.offset[back] * scale, self.shape, self.taken)

    def after(self, first: "Gather") -> "Gather":
        """This map of what `first` made."""
        index = first.index[self.index]
        scale = self.scale * first.scale[self.index]
        offset = self.scale * first.offset[self.index] + self.offset
        return Gather(index, scale, offset, first.taken, self.shape)

    def bare(self) -> "Gather":
        """The places alone; Unreadable where the numbers are not all multiplied by the same, or something is added."""
        if self.offset.abs().max() > 1e-6 or (self.scale / self.scale[0] - 1).abs().max() > 1e-3:
            raise Unreadable("it scales its noise unevenly before its network sees it")
        return Gather(self.index, torch.ones_like(self.scale), self.offset, self.taken, self.shape)
