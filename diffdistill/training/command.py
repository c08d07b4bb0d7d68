"""`diffdistill train|distill|align`: the run, and where its results lie.

Signals are taken before anything heavy is imported, which takes seconds: a scheduler may change its mind in them.
"""

from typing import TYPE_CHECKING, Any

from diffdistill import processes
from diffdistill.config import Resolved
from diffdistill.config.places import placed
from diffdistill.errors import DiffDistillError
from diffdistill.registry import named
from diffdistill.training.signals import stop_requests

if TYPE_CHECKING:
    from diffdistill.training.run import Result


def train(resolved: Resolved[Any]) -> int:
    return announced("train", resolved)


def distill(resolved: Resolved[Any]) -> int:
    return announced("distill", resolved)


def align(resolved: Resolved[Any]) -> int:
    return announced("align", resolved)


def announced(verb: str, resolved: Resolved[Any]) -> int:
    """The exit code of a finished run, once the user knows where to look."""
    with stop_requests():
        try:
            result: Result = named(f"diffdistill.training.run:{verb}")(resolved)
        except DiffDistillError as error:
            raise placed(error, resolved.config, resolved.origins) from error
    if processes.leader():
        print(f"{result.model_folder}: the model; {result.folder / 'report.html'}: curves, grids and figures")
    return 0
