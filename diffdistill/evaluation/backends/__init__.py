"""Whose arithmetic computes FID and KID of our features, to reproduce another tool's numbers exactly.

A backend a file; each calls the tool's own function. What newer versions of SciPy broke is repaired there.
No torch before one is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffdistill import __version__
from diffdistill.errors import ConfigError
from diffdistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.moments import Gaussian


@dataclass(frozen=True)
class Backend:
    """A row of the registry, `BACKEND` in its file.

    module: what must be importable, of the distribution called `name`; None: nothing. frechet: of two Gaussians.
    kernel: of features `(N, d)` and `(M, d)`, from so many subsets of such a size, drawn with a seed.

    >>> import torch
    >>> from diffdistill.evaluation.backends import BACKENDS
    >>> from diffdistill.evaluation.frechet import fit
    >>> native: Backend = BACKENDS.get("native")
    >>> features = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> round(native.frechet(fit(features), fit(features + 1)), 4)  # 1^2 in each of three
    3.0
    """

    name: str
    module: str | None
    frechet: "Callable[[Gaussian, Gaussian], float]"
    kernel: "Callable[[Tensor, Tensor, int, int, int], Estimate]"

    def version(self) -> str:
        """Name and version of what computes, for the protocol; ConfigError if it is not installed."""
        if self.module is None:
            return f"diffdistill {__version__}"
        tool(self.name, self.module)
        from importlib import metadata  # slow to import, and only results ask

        return f"{self.name} {metadata.version(self.name)}"


BACKENDS: Registry[Backend] = Registry("backend", Backend, "diffdistill.evaluation.backends", "BACKEND")


def tool(backend: str, module: str) -> Any:
    """A module of another tool; ConfigError where it is absent or broken.

    backend: the distribution to install, for the message; module: what of it is imported.

    >>> tool("numpy", "numpy.linalg").__name__
    'numpy.linalg'
    >>> tool("my-fid", "my_fid")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: backend 'my-fid' needs my-fid: pip install ... (No module named 'my_fid')
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"backend '{backend}' needs {backend}: pip install 'diffdistill[eval]' ({error})") from error
    except (RuntimeError, AttributeError, TypeError) as error:  # a torchvision that does not fit torch fails like this
        raise ConfigError(
            f"backend '{backend}' cannot be imported ({error}): 'diffdistill doctor' says why"
        ) from error
