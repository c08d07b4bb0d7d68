"""Tools to compare with, where they can be imported."""

from typing import Any

import pytest
import torch

# What torchvision's Python declares behaviour for, and a build for another torch brings no kernels for.
DECLARED = ("nms", "qnms")
_library: list[Any] = []


def torchvision_python() -> None:
    """Make torchvision's Python importable beside a torch that its compiled part was not built for.

    Its network definitions need none of the compiled operators, but the import fails when they are not declared. They
    are declared here without a kernel: calling one stays an error.
    """
    try:
        __import__("torchvision")
        return
    except ImportError as error:
        pytest.skip(f"torchvision is not installed ({error}): pip install torchvision")
    except (RuntimeError, AttributeError):
        pass
    if not _library:
        _library.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in DECLARED:
            _library[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def need_inception(name: str) -> Any:
    """A module that defines Inception v3 by torchvision, or a skip that says why not."""
    torchvision_python()
    try:
        return __import__(name, fromlist=["_"])
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"{name} cannot be imported ({error}): pip install torch-fidelity pytorch-fid torchvision")
