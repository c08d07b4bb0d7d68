"""Other tools' arithmetic on our features, so that a number can be had exactly as they would give it.

Each adapter calls the tool's own function. What newer versions of SciPy broke is mended here, from outside.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffdistill import __version__
from diffdistill.errors import ConfigError
from diffdistill.evaluation.arrays import Estimate
from diffdistill.evaluation.metrics.frechet import Gaussian, frechet_terms
from diffdistill.evaluation.metrics.kernel import kernel_distance

MODULES = {"torchmetrics": "torchmetrics", "clean-fid": "cleanfid.fid", "torch-fidelity": "torch_fidelity"}
BACKENDS = ("native", *MODULES)


def _module(backend: str, name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"backend '{backend}' needs {backend}: pip install 'diffdistill[eval]' ({error})") from error
    except (RuntimeError, AttributeError, TypeError) as error:  # a torchvision that does not fit torch fails like this
        raise ConfigError(
            f"backend '{backend}' cannot be imported ({error}): 'diffdistill doctor' says why"
        ) from error


def backend_version(backend: str) -> str:
    """Name and version of what computes, for the protocol; ConfigError if it is not installed."""
    if backend == "native":
        return f"diffdistill {__version__}"
    _module(backend, MODULES[backend])
    return f"{backend} {metadata.version(backend)}"


@contextmanager
def sqrtm_with_disp(module: Any) -> Iterator[None]:
    """Give `module.linalg.sqrtm` back the argument `disp` that SciPy 1.18 took away; the matrix root stays SciPy's."""
    linalg = module.linalg
    if "disp" in inspect.signature(linalg.sqrtm).parameters:
        yield
        return

    def sqrtm(matrix: np.ndarray, disp: bool = True) -> Any:
        root = linalg.sqrtm(matrix)
        return root if disp else (root, 0.0)

    module.linalg = SimpleNamespace(sqrtm=sqrtm)
    try:
        yield
    finally:
        module.linalg = linalg


class _Features(nn.Module):
    """An 'extractor' for torchmetrics whose images are features already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, x: Tensor) -> Tensor:
        # Versions before 1.2 measure the width with a picture instead of reading `num_features`.
        return x if x.ndim == 2 else x.new_zeros(len(x), self.num_features, dtype=torch.float64)


def _frechet_clean_fid(a: Gaussian, b: Gaussian) -> float:
    module = _module("clean-fid", "cleanfid.fid")
    with sqrtm_with_disp(module):
        means, covariances = (a.mean.numpy(), b.mean.numpy()), (a.covariance.numpy(), b.covariance.numpy())
        return float(module.frechet_distance(means[0], covariances[0], means[1], covariances[1]))


def _frechet_torch_fidelity(a: Gaussian, b: Gaussian) -> float:
    module = _module("torch-fidelity", "torch_fidelity.metric_fid")
    first, second = ({"mu": g.mean.numpy(), "sigma": g.covariance.numpy()} for g in (a, b))
    return float(module.fid_statistics_to_metric(first, second, False)[module.KEY_METRIC_FID])


def _frechet_torchmetrics(a: Gaussian, b: Gaussian) -> float:
    metric = _module("torchmetrics", "torchmetrics.image.fid").FrechetInceptionDistance(feature=_Features(len(a.mean)))
    for side, g in (("real", a), ("fake", b)):
        # The states that `update` would have accumulated; a file without n gives no other distance for any n.
        n = g.n or 50_000
        setattr(metric, f"{side}_features_sum", n * g.mean)
        setattr(metric, f"{side}_features_cov_sum", (n - 1) * g.covariance + n * torch.outer(g.mean, g.mean))
        setattr(metric, f"{side}_features_num_samples", torch.tensor(n))
    metric.orig_dtype = torch.float64
    metric._update_count = 1
    return float(metric.compute())


def _frechet_native(a: Gaussian, b: Gaussian) -> float:
    return frechet_terms(a, b).value


FRECHET: dict[str, Callable[[Gaussian, Gaussian], float]] = {
    "native": _frechet_native,
    "torchmetrics": _frechet_torchmetrics,
    "clean-fid": _frechet_clean_fid,
    "torch-fidelity": _frechet_torch_fidelity,
}


def _kernel_clean_fid(real: Tensor, fake: Tensor, subsets: int, size: int, seed: int) -> Estimate:
    module = _module("clean-fid", "cleanfid.fid")
    state = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws its subsets from NumPy's global generator
    try:
        return Estimate(module.kernel_distance(real.numpy(), fake.numpy(), subsets, size))
    finally:
        np.random.set_state(state)


def _kernel_torch_fidelity(real: Tensor, fake: Tensor, subsets: int, size: int, seed: int) -> Estimate:
    module = _module("torch-fidelity", "torch_fidelity.metric_kid")
    out = module.kid_features_to_metric(
        real, fake, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return Estimate(out[module.KEY_METRIC_KID_MEAN], out[module.KEY_METRIC_KID_STD] / subsets**0.5)


def _kernel_torchmetrics(real: Tensor, fake: Tensor, subsets: int, size: int, seed: int) -> Estimate:
    metric_type = _module("torchmetrics", "torchmetrics.image.kid").KernelInceptionDistance
    metric = metric_type(feature=_Features(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return Estimate(float(mean), float(std) / subsets**0.5)


def _kernel_native(real: Tensor, fake: Tensor, subsets: int, size: int, seed: int) -> Estimate:
    return kernel_distance(real, fake, subsets=subsets, subset_size=size, seed=seed)


KERNEL: dict[str, Callable[[Tensor, Tensor, int, int, int], Estimate]] = {
    "native": _kernel_native,
    "torchmetrics": _kernel_torchmetrics,
    "clean-fid": _kernel_clean_fid,
    "torch-fidelity": _kernel_torch_fidelity,
}
