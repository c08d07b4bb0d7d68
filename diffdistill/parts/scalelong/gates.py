"""What multiplies a long skip: constants, or a small network that looks at the skip (ScaleLong, 2310.13545)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

DESCRIPTORS = 32  # numbers that describe a skip to the calibration network, whatever its channels
REDUCTION, TOKEN_REDUCTION = 4, 16  # of the hidden layer; 16 is the paper's, for a few hundred tokens


def constant_factors(mode: str, kappa: float, count: int) -> tuple[float, ...]:
    """kappa_1 ... kappa_N: kappa^(i-1) for `cs` (2310.13545, section 4.1), 1/sqrt(2) for `rsqrt2`.

    i = 1 is the shallowest skip, the first that the encoder makes and the last that the decoder takes.
    """
    return tuple(kappa**i for i in range(count)) if mode == "cs" else (math.sqrt(0.5),) * count


class ConstantScale(nn.Module):
    """skip_i <- kappa_i skip_i; no parameters, nothing kept for the backward pass."""

    def __init__(self, factors: Sequence[float]):
        super().__init__()
        self.handles: list[RemovableHandle] = []
        self.factors = tuple(factors)

    def gate(self, skip: Tensor, number: int) -> Tensor | float:
        return self.factors[number - 1]


class LearnedScale(nn.Module):
    """skip_i <- g(skip_i) skip_i, g = top * sigmoid(W2 relu(W1 z + b1) + b2), one network for all skips (section 4.2).

    tokens None: z is the mean of every channel, `(B, C)`, averaged into 32 neighbourhoods so that skips of any width
    share the network, and one gate a sample comes out. tokens L: the paper's form for U-ViT: z is the mean of every
    token, `(B, L)`, and every token has its gate.

    start "identity": W2 = 0, b2 = 0 and top = 2, so all gates are exactly 1. start "reference": top = 1 and torch's
    own start, so gates begin near 1/2, as in the authors' code. Computed in float32.
    """

    def __init__(self, start: str, tokens: int | None = None):
        super().__init__()
        self.handles: list[RemovableHandle] = []
        self.tokens = tokens
        self.top = 2.0 if start == "identity" else 1.0
        width = tokens or DESCRIPTORS
        self.squeeze = nn.Linear(width, max(1, width // (TOKEN_REDUCTION if tokens else REDUCTION)))
        self.excite = nn.Linear(self.squeeze.out_features, tokens or 1)
        if start == "identity":
            nn.init.zeros_(self.excite.weight)
            nn.init.zeros_(self.excite.bias)

    def gate(self, skip: Tensor, number: int) -> Tensor:
        """`(B, 1, ..., 1)`, or `(B, L, 1)` for tokens, of a skip `(B, C, H, W)` or `(B, L, D)`."""
        with torch.autocast(skip.device.type, enabled=False):
            z = self.describe(skip.float())
            z = linear(z, self.squeeze.weight.float(), self.squeeze.bias.float()).relu()
            gate = self.top * linear(z, self.excite.weight.float(), self.excite.bias.float()).sigmoid()
        return gate.reshape(gate.shape + (1,) * (skip.dim() - 2)).to(skip.dtype)

    def describe(self, skip: Tensor) -> Tensor:
        if self.tokens:
            return skip.mean(-1)
        if skip.dim() == 3:  # tokens in a number not known beforehand: the channels are last
            return resample(skip.mean(1), DESCRIPTORS)
        return resample(skip.flatten(2).mean(2), DESCRIPTORS)


def resample(z: Tensor, count: int) -> Tensor:
    """`(B, C)` -> `(B, count)` by means over neighbouring channels, a channel cut by a border shared between its two
    sides.

    Adaptive pooling does nearly this, but its gradient is not deterministic on a GPU.
    """
    fine = count // math.gcd(z.shape[1], count)
    return z.unsqueeze(2).expand(-1, -1, fine).flatten(1).unflatten(1, (count, -1)).mean(2)
