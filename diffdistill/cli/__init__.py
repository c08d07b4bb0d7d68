"""The command line: `main` runs `diffdistill VERB ...`."""

from diffdistill.cli.front import main

__all__ = ["main"]
