"""CMMD: the maximum mean discrepancy of normalised CLIP features with a Gaussian kernel."""

import torch
from torch import Tensor

from diffdistill.evaluation.arrays import Array, as_pair

CHUNK = 2048


def _mean_kernel(x: Tensor, y: Tensor, width: float) -> float:
    # Rows have length 1, so |a - b|^2 = 2 - 2 a.b.
    total = sum(float(((part @ y.T - 1) / width**2).exp().sum()) for part in x.split(CHUNK))
    return total / (len(x) * len(y))


def cmmd(real: Array, fake: Array, *, width: float = 10.0, scale: float = 1000.0) -> float:
    """`scale * MMD^2` with `k(a, b) = exp(-|a - b|^2 / (2 width^2))` (2401.09603, section 4; biased, as its code).

    Features `(N, d)` and `(M, d)` of CLIP; rows are scaled to length 1 here. The paper's figures use
    `openai/clip-vit-large-patch14-336`.

    >>> import torch
    >>> real = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    >>> round(cmmd(real, real), 6), cmmd(real, -real) > 0
    (0.0, True)

    Raises:
        DataError: fewer than two images, values that are not finite, or different dimensions.
    """
    x, y = (torch.nn.functional.normalize(features) for features in as_pair(real, fake))
    return scale * (_mean_kernel(x, x, width) + _mean_kernel(y, y, width) - 2 * _mean_kernel(x, y, width))
