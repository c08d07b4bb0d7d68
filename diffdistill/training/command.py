"""`diffdistill train|distill|align`: the run, and where its results lie."""

from diffdistill.config import Resolved
from diffdistill.training import run


def train(resolved: Resolved) -> int:
    return announced(run.train(resolved))


def distill(resolved: Resolved) -> int:
    return announced(run.distill(resolved))


def align(resolved: Resolved) -> int:
    return announced(run.align(resolved))


def announced(result: run.Result) -> int:
    """The exit code of a finished run, once the user knows where to look."""
    print(f"{result.model_folder}: the model; {result.folder / 'report.html'}: curves, grids and figures")
    return 0
