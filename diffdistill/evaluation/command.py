"""`diffdistill evaluate`: the flags as a request, the result printed with its protocol."""

import sys
from argparse import Namespace
from dataclasses import fields
from functools import partial
from typing import Any, TextIO

from diffdistill.evaluation import table
from diffdistill.evaluation.run import Request, answered
from diffdistill.outputs import is_stdout


def run(args: Namespace) -> int:
    """Evaluate, write, print; raises the errors of errors.py."""
    request = Request(**{field.name: getattr(args, field.name) for field in fields(Request)})
    answered(request, partial(show, file=sys.stderr if is_stdout(request.json) else sys.stdout))
    return 0


def show(results: list[dict[str, Any]], file: TextIO) -> None:
    """The table of the results, and their warnings."""
    print(table.one(results[0]) if len(results) == 1 else table.comparison(results), file=file)
    for text in dict.fromkeys(text for measured in results for text in measured["warnings"]):
        print(f"warning: {text}", file=sys.stderr)
