"""Schedulers of diffusers by name, and a whole loop with each."""

from typing import Any

import diffusers
import torch
from gaussian import run

from diffdistill.schedulers import BASES

# CosineDPMSolverMultistepScheduler cannot be made without torchsde.
NAMES = [name for name in BASES if not name.startswith("Cosine")]
SETTINGS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False, "variance_type": "fixed_large"},
}


def plain(name: str, **settings: Any) -> Any:
    return getattr(diffusers, name)(**SETTINGS.get(name, {}), **settings)


def noise(batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def drawn(scheduler: Any, steps: int = 6, **settings: Any) -> torch.Tensor:
    """A whole loop; samplers that draw noise draw the same."""
    torch.manual_seed(0)
    return run(scheduler, noise(**settings), steps)
