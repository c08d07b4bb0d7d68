"""clean-fid (2104.11222)."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.backends import Backend, tool

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.moments import Gaussian


@contextmanager
def sqrtm_with_disp(module: Any) -> Iterator[None]:
    """Give `module.linalg.sqrtm` back the argument `disp` that SciPy 1.18 took away; the matrix root stays SciPy's."""
    linalg = module.linalg
    if "disp" in inspect.signature(linalg.sqrtm).parameters:
        yield
        return

    def sqrtm(matrix: "np.ndarray", disp: bool = True) -> Any:
        root = linalg.sqrtm(matrix)
        return root if disp else (root, 0.0)

    module.linalg = SimpleNamespace(sqrtm=sqrtm)
    try:
        yield
    finally:
        module.linalg = linalg


def frechet(a: "Gaussian", b: "Gaussian") -> float:
    module = tool("clean-fid", "cleanfid.fid")
    with sqrtm_with_disp(module):
        means, covariances = (a.mean.numpy(), b.mean.numpy()), (a.covariance.numpy(), b.covariance.numpy())
        return float(module.frechet_distance(means[0], covariances[0], means[1], covariances[1]))


def kernel(real: "Tensor", fake: "Tensor", subsets: int, size: int, seed: int) -> "Estimate":
    import numpy as np

    from diffdistill.evaluation.arrays import Estimate

    module = tool("clean-fid", "cleanfid.fid")
    state = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws its subsets from NumPy's global generator
    try:
        return Estimate(module.kernel_distance(real.numpy(), fake.numpy(), subsets, size))
    finally:
        np.random.set_state(state)


BACKEND = Backend("clean-fid", "cleanfid.fid", frechet, kernel)
