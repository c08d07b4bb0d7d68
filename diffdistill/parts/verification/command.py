"""`diffdistill verify [--json FILE]`: every check as a line of a table; exit code 1 if one fails."""

import contextlib
import math
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

import torch

from diffdistill import __version__
from diffdistill.outputs import check_output, has_keys, is_stdout, write_answer
from diffdistill.parts.verification import checks_consistency, checks_ddo, checks_losses, checks_step
from diffdistill.parts.verification.check import HEADER, Check, table_line

GROUPS = {
    "A  the score-gap gradient is the gradient of the divergence": checks_losses.score_gaps,
    "B  the Fisher form is the gradient of the weighted Fisher divergence; a detached ratio is wrong": (
        checks_losses.fishers
    ),
    "E  Gaussian closed forms, and where SiD is unstable": checks_losses.gaussians,
    "G  the step that training runs, row by row of the method table; its critic and discriminator": checks_step.checks,
    "H  consistency models on Gaussian data": checks_consistency.checks,
    "I  DDO: its optimum, its gradient at the reference, and where one noise an image leads it": checks_ddo.checks,
}


def run(args: Namespace) -> int:
    """Print the table, write it to `--json`; 0 if every check holds, else 1."""
    if args.json is not None:
        check_output(args.json, "--json", has_keys("ok", "checks"))
    with contextlib.redirect_stdout(sys.stderr if is_stdout(args.json) else sys.stdout):
        done, seconds = _printed()
    if args.json is not None:
        write_answer(args.json, record(done, seconds))
    return 0 if all(check.ok for check in done) else 1


def _printed() -> tuple[list[Check], float]:
    """The checks, a line each as they come, and the seconds they took."""
    start = time.perf_counter()
    done = []
    for check in all_checks():
        print(table_line(check), flush=True)
        done.append(check)
    seconds = time.perf_counter() - start
    failed = [check for check in done if not check.ok]
    for check in failed:
        print(f"FAILED: {check.test} {check.quantity}: error {check.error:.3g}, allowed {check.tolerance:g}")
    print(f"{len(done) - len(failed)} of {len(done)} checks hold ({seconds:.0f} s)")
    return done, seconds


def all_checks() -> Iterator[Check]:
    """All checks, each group under its title."""
    for title, group in GROUPS.items():
        print(f"\n{title}\n{HEADER}")
        yield from group()


def record(checks: list[Check], seconds: float) -> dict[str, object]:
    """What `--json` writes; numbers that are not finite as strings, for JSON has none."""
    rows = []
    for check in checks:
        row = check.row() | {"got": [_finite(v) for v in check.got], "error": _finite(check.error)}
        rows.append(row)
    return {
        "ok": all(check.ok for check in checks),
        "seconds": round(seconds, 1),
        "diffdistill": __version__,
        "torch": torch.__version__,
        "platform": platform.platform(),
        "checks": rows,
    }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
