"""Copies of the tree, and runs of chosen tests on them in forked processes that need not import torch again."""

import atexit
import compileall
import contextlib
import hashlib
import importlib
import json
import os
import py_compile
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import bench as server
from .examine import Request
from .plugins import SITECUSTOMIZE, Chosen

LINKED = "assets"  # large and never changed
QUIET = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]


def files_of(root: Path) -> list[Path]:
    """The files of the tree at `root`, relative: what git tracks or would, or simply all where there is no git."""
    if (root / ".git").exists():
        words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = sorted({Path(name) for name in names if name})
    else:
        paths = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return [p for p in paths if p.parts[0] != LINKED and (root / p).is_file()]


def key_of(root: Path) -> str:
    """A hash of everything that tests can see but the assets."""
    digest = hashlib.sha256(sys.version.encode())
    digest.update(sys.prefix.encode())
    for path in files_of(root):
        if path.suffix != ".md" and path.parts[:2] not in (("tests", "mutants"), ("tests", "test_mutants.py")):
            digest.update(f"{path}\0".encode() + (root / path).read_bytes())
    return digest.hexdigest()[:16]


def copy_tree(root: Path, to: Path) -> Path:
    """A copy to break. Its bytecode is checked by hash, for two changes within a second have the same time stamp."""
    for path in files_of(root):
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, to / path)
    (to / LINKED).symlink_to((root / LINKED).resolve())
    (to / "sitecustomize.py").write_text(SITECUSTOMIZE)
    shutil.copytree(Path(__file__).parent, to / "tests" / "mutants", dirs_exist_ok=True)
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(to / "diffdistill", quiet=2, invalidation_mode=checked)
    return to


def prepare_environment() -> None:
    """What `tests/conftest.py` sets before torch is imported, for torch is imported here."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    os.environ.setdefault("MPLBACKEND", "Agg")


def preload(modules: Sequence[str]) -> None:
    """Import what the tests will want, so that a fork has it. Nothing of the package, and no test."""
    own = {path.name.removesuffix(".py") for path in Path().glob("tests/*")} | {"diffdistill", "tests", "conftest"}
    for name in modules:
        first = name.partition(".")[0]
        if name in sys.modules or first in own or first.startswith("_") or "__main__" in name:
            continue
        with contextlib.suppress(BaseException):
            importlib.import_module(name)


class Run:
    """One pytest session on a copied tree, in a forked process; `report` is the function that it writes back."""

    def __init__(
        self, tree: Path, words: Sequence[str], plugin: Any, report: Callable[[], dict[str, Any]], limit: float
    ):
        self.began, self.limit, self.tree = time.monotonic(), limit, tree
        self.answer = tree.parent / f"{tree.name}.answer.json"
        self.answer.unlink(missing_ok=True)
        self.pid = fork_pytest(tree, words, plugin, lambda code: self._write({"code": code, **report()}))

    def _write(self, value: dict[str, Any]) -> None:
        self.answer.write_text(json.dumps(value))

    def poll(self) -> dict[str, Any] | None:
        """The answer if the run is over; `{"code": -1}` after the time limit, `{"code": -2}` if it died."""
        if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() - self.began < self.limit:
                return None
            end(self.pid)
            os.waitpid(self.pid, 0)
            return {"code": -1, "failed": []}
        end(self.pid)  # what a test left running
        shutil.rmtree(f"{self.tree}.tmp", ignore_errors=True)
        return json.loads(self.answer.read_text()) if self.answer.exists() else {"code": -2, "failed": []}

    def wait(self) -> dict[str, Any]:
        while (answer := self.poll()) is None:
            time.sleep(0.02)
        return answer


class Bench:
    """A collected session (`bench.Bench`) in a forked process, and runs from the start on the same tree."""

    def __init__(self, tree: Path, test_files: Sequence[str]):
        self.tree = tree
        requests, self.send = os.pipe()
        self.receive, answers = os.pipe()
        plugin = server.Bench(requests, answers, tree)
        self.pid = fork_pytest(tree, test_files, plugin, lambda code: None, closing=(self.send, self.receive))
        plugin.requests.close()
        plugin.answers.close()
        self.answers = os.fdopen(self.receive, "r")
        self.run: Run | None = None
        self.collected = False

    def ready(self) -> bool:
        """Whether the tests are collected: no line may be broken before, or that would be what was imported."""
        if not self.collected and select.select([self.receive], [], [], 0)[0]:
            if "ready" not in self.answers.readline():
                raise SystemExit(f"the tests could not be collected; see {self.tree}.log")
            self.collected = True
        return self.collected

    def ask(self, request: Request) -> None:
        if request.fresh:
            plugin = Chosen(request.names)
            files = list(dict.fromkeys(name.partition("::")[0] for name in request.names))
            self.run = Run(self.tree, files, plugin, lambda: {"failed": plugin.failed}, request.limit)
            return
        os.write(self.send, (json.dumps(request._asdict()) + "\n").encode())

    def poll(self) -> dict[str, Any] | None:
        if self.run is not None:
            answer = self.run.poll()
            self.run = self.run if answer is None else None
            return answer
        return json.loads(self.answers.readline()) if select.select([self.receive], [], [], 0)[0] else None

    def close(self) -> None:
        end(self.pid)
        os.waitpid(self.pid, 0)


def end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def fork_pytest(
    tree: Path, words: Sequence[str], plugin: Any, done: Callable[[int], None], closing: Sequence[int] = ()
) -> int:
    """A pytest session on `tree` in a forked process that leads its own group; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        atexit.register(end, pid)
        return pid
    try:
        os.setsid()
        for descriptor in closing:
            os.close(descriptor)
        log = os.open(f"{tree}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", str(Path(__file__).parents[2])))]
        sys.argv = ["pytest"]
        os.environ["PYTHONPATH"] = str(tree)
        code = pytest.main([*QUIET, f"--basetemp={tree}.tmp", f"--rootdir={tree}", *words], plugins=[plugin])
        done(int(code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)
