"""What every test file may use. Tests never reach the network and never depend on the number of cores."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported by any test: results are compared to the last bit, for one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str
    cpu_seconds: float


@pytest.fixture
def root() -> Path:
    """The clone."""
    return ROOT


@pytest.fixture
def python() -> Callable[..., Finished]:
    """Run a fresh interpreter: `python("-m", "diffdistill.cli", "--help")`."""

    def run(*words: str, timeout: float = 120, **env: str) -> Finished:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        path = os.pathsep.join(filter(None, [env.pop("PYTHONPATH", ""), str(ROOT)]))
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **env, "PYTHONPATH": path},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return Finished(done.returncode, done.stdout, done.stderr, seconds)

    return run
