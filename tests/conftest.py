"""What every test file may use. Tests never reach the network and never depend on the number of cores."""

import os
import resource
import subprocess
import sys
import types
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
    """Run a fresh interpreter: `python("-m", "diffdistill", "--help")`."""

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


@pytest.fixture
def ask(capsys):
    """Run a command line in this process: (exit code, what it printed, what it complained)."""
    from diffdistill.cli import front as cli

    def run(*words):
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def stub(monkeypatch):
    """Put a function in the place of a verb's; returns what it was called with. Names need not be of anything."""
    from diffdistill.cli import early
    from diffdistill.cli.front import verbs

    for look in ("look_at", "settings"):
        monkeypatch.setattr(early, look, lambda *_: None)

    def place(verb, behaviour=lambda what: 0):
        calls = []

        def function(what):
            calls.append(what)
            return behaviour(what)

        module, _, name = verbs()[verb].target.partition(":")
        fake = types.ModuleType(module)
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return place


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; no pickle that leaves the trace `opened` may have been opened when the test is over."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "opened").exists()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What is kept between runs (images, prompts, features) is neither read from the user's cache nor left there."""
    before = os.environ.get("DIFFDISTILL_CACHE")
    os.environ["DIFFDISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("DIFFDISTILL_CACHE")
    if before is not None:
        os.environ["DIFFDISTILL_CACHE"] = before


@pytest.fixture(autouse=True)
def no_consent_is_left():
    """Leave to run code ends with the test that gave it."""
    yield
    if registry := sys.modules.get("diffdistill.registry"):
        registry.allow_code(False)


@pytest.fixture
def consent():
    """The user allows code, for one test."""
    from diffdistill.registry import allow_code

    allow_code()
