"""Tries in forked children with limits of time and memory: what hangs, crashes or eats is only counted."""

import faulthandler
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import BUG, spawn_function, wait

SECONDS, BYTES = 10, 2**30
BATCH = 200

Attempt = Callable[[int], tuple[str | None, str]]
"""Seed -> (what is wrong or None, what came of it)."""


def _memory(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _limited(attempt: Attempt, seeds: range, results: Path) -> None:
    """In a child: a line of JSON a try. A try may take SECONDS, and BYTES more than the process has."""
    faulthandler.disable()
    silent = os.open(results.with_name("said.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(silent, 1)
    os.dup2(silent, 2)  # loggers of libraries hold on to it
    room = _memory("VmSize") + 2 * BYTES  # address space, some of which is only reserved
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, so that C code stops too
    with results.open("a", buffering=1) as stream:
        for seed in seeds:
            stream.write(json.dumps({"seed": seed}) + "\n")
            Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
            before, began = _memory("VmRSS"), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process, however busy the machine is
            problem, outcome = attempt(seed)
            signal.setitimer(signal.ITIMER_PROF, 0)
            took, grown = time.process_time() - began, _memory("VmHWM") - before
            if problem is None and grown > BYTES:
                problem = f"{grown / 1e9:.1f} GB"
            line = {"seed": seed, "problem": problem, "outcome": outcome, "seconds": took, "bytes": grown}
            stream.write(json.dumps(line) + "\n")


def attempts(attempt: Attempt, count: int, folder: Path, first: int = 0) -> list[dict[str, Any]]:
    """Results of so many seeds. A child that dies counts as a wrong try of the seed it was at; another goes on."""
    results, found = folder / "results.jsonl", []
    seed, end = first, first + count
    while seed < end:
        results.unlink(missing_ok=True)
        seeds = range(seed, min(seed + BATCH, end))
        code = wait(spawn_function(lambda seeds=seeds: _limited(attempt, seeds, results)), 60 + 2 * len(seeds))
        lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        done = [line for line in lines if "outcome" in line]
        found += done
        seed = seeds.stop
        if len(done) < len(seeds):
            at = seeds[len(done)]
            why = f"over {SECONDS} s" if code == -signal.SIGPROF else f"the process ended with {code}"
            found.append({"seed": at, "problem": why, "outcome": "", "seconds": SECONDS, "bytes": 0})
            seed = at + 1
    return found


def tally(counts: Any, found: list[dict[str, Any]]) -> None:
    """Into counts, with the longest time and the most memory of a try."""
    for line in found:
        counts.judge(line["problem"], line["outcome"], f"seed {line['seed']}")
    counts.facts["most seconds"] = round(max(line["seconds"] for line in found), 2)
    counts.facts["most MB"] = round(max(line["bytes"] for line in found) / 1e6)


def refused_or(read: Callable[[], str]) -> tuple[str | None, str]:
    """What `read` says it did, or its refusal; anything but a sentence of ours is wrong."""
    from subjects import REFUSALS, quietly

    from diffdistill.cli.front import explained

    try:
        return None, quietly(read)
    except AssertionError as error:
        return f"silent: {error}", ""
    except MemoryError as error:
        return f"MemoryError: {error}", ""
    except BaseException as error:
        known = explained(error)
        if known.exit_code in REFUSALS and "\n" not in str(known):
            return None, f"refused, exit {known.exit_code}"
        return f"{type(error).__name__}: {str(known)[:200]}", ""


def told(words: list[object]) -> Callable[[], str]:
    """A command line in this process, for `refused_or`: says "accepted", or raises what it was refused with."""

    def run() -> str:
        import contextlib
        import io

        from diffdistill.cli import main
        from diffdistill.errors import DiffDistillError

        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main([str(word) for word in words])
        text = said.getvalue().strip()
        if code == 0:
            return "accepted"
        error = DiffDistillError(text.rpartition("diffdistill: error: ")[2])
        error.exit_code = 1 if BUG.search(text) else code
        raise error

    return run
