"""torch-fidelity."""

from typing import TYPE_CHECKING

from diffdistill.evaluation.backends import Backend, tool

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.moments import Gaussian


def frechet(a: "Gaussian", b: "Gaussian") -> float:
    module = tool("torch-fidelity", "torch_fidelity.metric_fid")
    first, second = ({"mu": g.mean.numpy(), "sigma": g.covariance.numpy()} for g in (a, b))
    return float(module.fid_statistics_to_metric(first, second, False)[module.KEY_METRIC_FID])


def kernel(real: "Tensor", fake: "Tensor", subsets: int, size: int, seed: int) -> "Estimate":
    from diffdistill.evaluation.arrays import Estimate

    module = tool("torch-fidelity", "torch_fidelity.metric_kid")
    out = module.kid_features_to_metric(
        real, fake, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return Estimate(out[module.KEY_METRIC_KID_MEAN], out[module.KEY_METRIC_KID_STD] / subsets**0.5)


BACKEND = Backend("torch-fidelity", "torch_fidelity", frechet, kernel)
