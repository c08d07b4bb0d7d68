"""Adapters of other tools, here against stand-ins that fail as the real ones do; the real ones: tests/crosscheck."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from diffdistill.errors import ConfigError
from diffdistill.evaluation import backends
from diffdistill.evaluation.backends import BACKENDS
from diffdistill.evaluation.frechet import fit, frechet_terms


def newer_sqrtm(A: np.ndarray) -> np.ndarray:
    """The signature of SciPy 1.18: no `disp`, one result."""
    values, vectors = np.linalg.eig(A)
    return (vectors * np.sqrt(values.astype(complex))) @ np.linalg.inv(vectors)


@pytest.fixture
def dormant(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that calls `sqrtm(..., disp=False)` as clean-fid 0.1.35 does, on a SciPy that knows no `disp`."""
    module: Any = ModuleType("cleanfid.fid")
    module.linalg = SimpleNamespace(sqrtm=newer_sqrtm)

    def frechet_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
        root, _ = module.linalg.sqrtm(sigma1.dot(sigma2), disp=False)
        return float((mu1 - mu2).dot(mu1 - mu2) + np.trace(sigma1 + sigma2) - 2 * np.trace(root).real)

    module.frechet_distance = frechet_distance
    monkeypatch.setitem(sys.modules, "cleanfid", ModuleType("cleanfid"))
    monkeypatch.setitem(sys.modules, "cleanfid.fid", module)
    return module


def gaussians() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    y = 1.2 * torch.randn(400, 12, generator=generator, dtype=torch.float64) + 0.1
    return fit(x), fit(y)


def test_clean_fid_survives_a_sqrtm_without_disp(dormant: Any):
    a, b = gaussians()
    with pytest.raises(TypeError, match="disp"):
        dormant.frechet_distance(a.mean.numpy(), a.covariance.numpy(), b.mean.numpy(), b.covariance.numpy())
    assert BACKENDS.get("clean-fid").frechet(a, b) == pytest.approx(frechet_terms(a, b).value, rel=1e-9)
    assert dormant.linalg.sqrtm is newer_sqrtm  # what was mended is put back


def test_an_older_sqrtm_is_left_alone(dormant: Any):
    def older(A: np.ndarray, disp: bool = True) -> Any:
        return scipy.linalg.sqrtm(A) if disp else (newer_sqrtm(A), 0.0)

    dormant.linalg = SimpleNamespace(sqrtm=older)
    a, b = gaussians()
    assert BACKENDS.get("clean-fid").frechet(a, b) == pytest.approx(frechet_terms(a, b).value, rel=1e-9)


def test_native_never_asks_scipy_for_a_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scipy.linalg, "sqrtm", None)
    a, b = gaussians()
    assert BACKENDS.get("native").frechet(a, b) > 0


@pytest.mark.parametrize("backend", ["torchmetrics", "clean-fid", "torch-fidelity"])
def test_a_backend_that_is_absent_names_the_extra(backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, str(BACKENDS.get(backend).module).partition(".")[0], None)
    with pytest.raises(ConfigError, match=rf"backend '{backend}' needs {backend}: pip install 'diffdistill\[eval\]'"):
        BACKENDS.get(backend).version()


def test_a_broken_torchvision_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(backends, "import_module", broken)
    with pytest.raises(ConfigError, match=r"torchvision::nms does not exist\): 'diffdistill doctor' says why"):
        BACKENDS.get("torch-fidelity").version()
