"""The command line: `main` runs `diffdistill VERB ...`; `explained` tells any exception as the user's error."""

from diffdistill.cli.front import main
from diffdistill.explain import explained

__all__ = ["explained", "main"]
