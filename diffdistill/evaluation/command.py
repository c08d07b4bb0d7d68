"""`diffdistill evaluate`: the flags as a request, the result printed with its protocol."""

import sys
from argparse import Namespace
from dataclasses import fields

from diffdistill.evaluation import table
from diffdistill.evaluation.run import Request, evaluate


def run(args: Namespace) -> int:
    """Evaluate, print, write; raises the errors of errors.py."""
    result = evaluate(Request(**{field.name: getattr(args, field.name) for field in fields(Request)}))
    results = result.get("models") or [result]
    print(table.one(results[0]) if len(results) == 1 else table.comparison(results))
    for text in dict.fromkeys(text for measured in results for text in measured["warnings"]):
        print(f"warning: {text}", file=sys.stderr)
    return 0
