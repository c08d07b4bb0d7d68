"""Our own arithmetic."""

from typing import TYPE_CHECKING

from diffdistill.evaluation.backends import Backend

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.moments import Gaussian


def frechet(a: "Gaussian", b: "Gaussian") -> float:
    from diffdistill.evaluation.frechet import frechet_terms

    return frechet_terms(a, b).value


def kernel(real: "Tensor", fake: "Tensor", subsets: int, size: int, seed: int) -> "Estimate":
    from diffdistill.evaluation.kernel import kernel_distance

    return kernel_distance(real, fake, subsets=subsets, subset_size=size, seed=seed)


BACKEND = Backend("native", None, frechet, kernel)
