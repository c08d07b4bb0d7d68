"""Metrics with their protocol. Nothing is imported until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.evaluation.clip_mmd import cmmd
    from diffdistill.evaluation.clip_similarity import clip_score
    from diffdistill.evaluation.entropy import inception_score
    from diffdistill.evaluation.evaluator import Evaluator, evaluate_images
    from diffdistill.evaluation.features import load_features
    from diffdistill.evaluation.frechet import frechet_distance, frechet_from_stats
    from diffdistill.evaluation.kernel import kernel_distance
    from diffdistill.evaluation.precision_recall import prdc
    from diffdistill.evaluation.run import evaluate

__all__ = [
    "Evaluator",
    "clip_score",
    "cmmd",
    "evaluate",
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
    "clip_score": "clip_similarity",
    "cmmd": "clip_mmd",
    "evaluate": "run",
    "evaluate_images": "evaluator",
    "frechet_distance": "frechet",
    "frechet_from_stats": "frechet",
    "inception_score": "entropy",
    "kernel_distance": "kernel",
    "load_features": "features",
    "prdc": "precision_recall",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffdistill.evaluation' has no attribute '{name}'")
    return getattr(import_module(f"diffdistill.evaluation.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
