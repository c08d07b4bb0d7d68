"""The real command line in forked children of a process that has imported everything: a tiny run takes a second."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TIMEOUT = 120.0
BUG = re.compile(r"Traceback \(most recent|error: unexpected [A-Za-z_]+: |panicked at")
"""What a command says of an exception that nobody explained."""
Hook = Callable[[], Any]

COMMON: dict[str, Any] = {
    "train_batch_size": 4, "log_every": 1, "sample_every": 0, "num_threads": 1, "mixed_precision": "no",
    "checkpoint_every": 1, "keep_checkpoints": 2, "evaluation": {"at_end": False, "every": 0},
}  # fmt: skip
NETWORK = {"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4}


@dataclass(frozen=True)
class Done:
    """How a command line ended: its exit code (minus the signal that killed it), what it printed, its seconds."""

    code: int
    text: str
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """No traceback, nothing unexpected; a failure is a sentence."""
        return not BUG.search(self.text) and (self.code == 0 or "diffdistill: error:" in self.text)

    def __str__(self) -> str:
        return f"exit {self.code}: {' '.join(self.text.split())[-300:]}"


def spawn_function(function: Callable[[], int | None]) -> int:
    """Fork a child that calls a function and ends with what it returns, 99 for an exception. Returns its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = function() or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def spawn(words: Sequence[object], log: Path, hook: Hook | None = None) -> int:
    """Fork a child that runs a command line, its output in `log`; the hook is called in it first. Returns its pid."""

    def run() -> int:
        warnings.resetwarnings()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        if hook is not None:
            hook()
        from diffdistill.cli import main

        return main([str(word) for word in words])

    return spawn_function(run)


def wait(pid: int, timeout: float = TIMEOUT) -> int:
    """The exit code of a child; -9 where it took too long and was killed."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tensors(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of tensors below a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def whole(run: Path) -> list[Path]:
    """The checkpoints of a run that `checkpoint verify` would call good, oldest first."""
    from diffdistill.training.store import problem_of

    return sorted(folder for folder in (run / "checkpoints").glob("step-*") if problem_of(folder) is None)


def flip(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


@dataclass
class Workshop:
    """A folder with tiny data and teachers, and command lines of tiny runs on them, by kind of run."""

    root: Path
    configs: dict[str, Path] = field(default_factory=dict)

    def run(self, words: Sequence[object], hook: Hook | None = None, timeout: float = TIMEOUT) -> Done:
        log, began = self.root / f"log-{os.getpid()}.txt", time.monotonic()
        code = wait(spawn(words, log, hook), timeout)
        return Done(code, log.read_text(errors="replace"), time.monotonic() - began)

    def must(self, words: Sequence[object]) -> Done:
        done = self.run(words)
        assert done.code == 0, f"{words}: {done}"
        return done

    def words(self, kind: str, out: Path, steps: int, *more: str) -> list[object]:
        """The command line of a run; kind: train, distill, distill_text, align."""
        verb = kind.partition("_")[0]
        return [verb, self.configs[kind], f"output_dir={out}", f"max_train_steps={steps}", *more]

    def published(self, kind: str) -> str:
        return "student" if kind.startswith("distill") else "model"

    def folder(self, name: str) -> Path:
        """A new empty folder."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def config(self, name: str, **settings: Any) -> Path:
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**COMMON, "output_dir": "runs/x", **settings}))
        self.configs[name] = file
        return file


def workshop(root: Path, texts: bool) -> Workshop:
    """Build it: data, a teacher that was trained for three steps, and with `texts` a pipeline, prompts and pairs."""
    shop = Workshop(root)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(root / "data.npz", images=pixels, labels=np.arange(24) % 3)
    data = {"path": str(root / "data.npz")}
    shop.config("train", data=data, network=NETWORK)
    shop.must(shop.words("train", root / "teacher", 3))
    teacher = str(root / "teacher" / "model")
    shop.config(
        "distill", data=data, teacher=teacher, method={"name": "dmd2"}, critic={"updates_per_step": 1},
        train_batch_size=2,
    )  # fmt: skip
    shop.must(shop.words("distill", root / "student", 3))
    if texts:
        _add_texts(shop)
    return shop


def _add_texts(shop: Workshop) -> None:
    import tiny_text

    tiny_text.stable_diffusion(shop.root / "sd")
    tiny_text.pair_folder(shop.root / "pairs", 8)
    prompts = shop.root / "prompts.txt"
    prompts.write_text("".join(f"thing {i}\n" for i in range(8)))
    network = str(shop.root / "sd")
    shop.config(
        "distill_text", teacher=network, data={"prompts": str(prompts), "image_size": 16},
        method={"name": "diff_instruct", "guidance_scale": 2.0, "adversarial": None}, train_batch_size=2,
    )  # fmt: skip
    shop.config(
        "align", model=network, data={"path": str(shop.root / "pairs"), "held_out": 0.3}, train_batch_size=2,
        method={"name": "mapo"}, lora={"rank": 2}, optimizer={"learning_rate": 1.0e-3},
        evaluation={"at_end": False, "every": 0, "levels": 2, "sampling_steps": 2},
    )  # fmt: skip


def imported() -> None:
    """Import what the verbs import, before the first fork.

    tqdm's own lock is one of all processes: a run that is killed while it holds it would stop those that come after.
    """
    import importlib
    import threading

    import tqdm

    tqdm.tqdm.set_lock(threading.RLock())
    for name in (
        "training.command", "training.run", "sampling.command", "evaluation.command", "reporting.report",
        "parts.edm.command", "pipelines.load", "alignment.mapo",
    ):  # fmt: skip
        importlib.import_module(f"diffdistill.{name}")
