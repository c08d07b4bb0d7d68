"""The command line: `main` runs `diffdistill VERB ...`; `explained` tells any exception as the user's error."""

from diffdistill.cli.explain import explained
from diffdistill.cli.front import main

__all__ = ["explained", "main"]
