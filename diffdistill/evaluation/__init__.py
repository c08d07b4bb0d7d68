"""Metrics with their protocol. Nothing is imported until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.evaluation.clip_score import clip_score
    from diffdistill.evaluation.cmmd import cmmd
    from diffdistill.evaluation.evaluator import Evaluator, evaluate_images
    from diffdistill.evaluation.features import load_features
    from diffdistill.evaluation.frechet import frechet_distance, frechet_from_stats
    from diffdistill.evaluation.inception_score import inception_score
    from diffdistill.evaluation.kernel import kernel_distance
    from diffdistill.evaluation.prdc import prdc

__all__ = [
    "Evaluator",
    "clip_score",
    "cmmd",
    "evaluate_images",
    "frechet_distance",
    "frechet_from_stats",
    "inception_score",
    "kernel_distance",
    "load_features",
    "prdc",
]

_HOME = {"Evaluator": "evaluator", "evaluate_images": "evaluator", "frechet_distance": "frechet",
         "frechet_from_stats": "frechet", "kernel_distance": "kernel", "load_features": "features"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'diffdistill.evaluation' has no attribute '{name}'")
    value = getattr(import_module(f"diffdistill.evaluation.{_HOME.get(name, name)}"), name)
    globals()[name] = value  # a function and its file share a name: the function must win over the submodule
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
