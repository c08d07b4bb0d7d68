"""Metrics with their protocol. Nothing is imported until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.evaluation.evaluator import Evaluator, evaluate_images
    from diffdistill.evaluation.features import load_features
    from diffdistill.evaluation.metrics.clip_mmd import cmmd
    from diffdistill.evaluation.metrics.clip_similarity import clip_score
    from diffdistill.evaluation.metrics.entropy import inception_score
    from diffdistill.evaluation.metrics.frechet import frechet_distance, frechet_from_stats
    from diffdistill.evaluation.metrics.kernel import kernel_distance
    from diffdistill.evaluation.metrics.precision_recall import prdc

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

# Files are named otherwise than what they export: importing a submodule would hide a function of its name.
_HOME = {
    "Evaluator": "evaluator",
    "clip_score": "metrics.clip_similarity",
    "cmmd": "metrics.clip_mmd",
    "evaluate_images": "evaluator",
    "frechet_distance": "metrics.frechet",
    "frechet_from_stats": "metrics.frechet",
    "inception_score": "metrics.entropy",
    "kernel_distance": "metrics.kernel",
    "load_features": "features",
    "prdc": "metrics.precision_recall",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.evaluation' has no attribute '{name}'")
    return getattr(import_module(f"diffdistill.evaluation.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
