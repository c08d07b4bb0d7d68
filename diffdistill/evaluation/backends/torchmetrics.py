"""torchmetrics."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.backends import Backend, tool

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.moments import Gaussian


def _features(dim: int) -> Any:
    """An 'extractor' whose images are features already."""
    import torch

    class Features(torch.nn.Module):
        num_features = dim

        def forward(self, x: "Tensor") -> "Tensor":
            # Versions before 1.2 measure the width with a picture instead of reading `num_features`.
            return x if x.ndim == 2 else x.new_zeros(len(x), dim, dtype=torch.float64)

    return Features()


def frechet(a: "Gaussian", b: "Gaussian") -> float:
    import torch

    metric = tool("torchmetrics", "torchmetrics.image.fid").FrechetInceptionDistance(feature=_features(len(a.mean)))
    for side, g in (("real", a), ("fake", b)):
        # The states that `update` would have accumulated; a file without n gives no other distance for any n.
        n = g.n or 50_000
        setattr(metric, f"{side}_features_sum", n * g.mean)
        setattr(metric, f"{side}_features_cov_sum", (n - 1) * g.covariance + n * torch.outer(g.mean, g.mean))
        setattr(metric, f"{side}_features_num_samples", torch.tensor(n))
    metric.orig_dtype = torch.float64
    metric._update_count = 1
    return float(metric.compute())


def kernel(real: "Tensor", fake: "Tensor", subsets: int, size: int, seed: int) -> "Estimate":
    import torch

    from diffdistill.evaluation.arrays import Estimate

    metric_type = tool("torchmetrics", "torchmetrics.image.kid").KernelInceptionDistance
    metric = metric_type(feature=_features(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return Estimate(float(mean), float(std) / subsets**0.5)


BACKEND = Backend("torchmetrics", "torchmetrics", frechet, kernel)
