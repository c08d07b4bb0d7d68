"""Where reference features and downloaded extractor weights are kept between runs."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """`$DIFFDISTILL_CACHE`, else the platform's place for a user's caches."""
    if given := os.environ.get("DIFFDISTILL_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diffdistill"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "diffdistill"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffdistill"
