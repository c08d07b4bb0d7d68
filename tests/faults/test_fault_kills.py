"""SIGKILL at any moment: a verified checkpoint is left, or none at all, and the resumed run ends bit-equal."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from counts import counting, tries
from harness import Workshop, spawn, tensors, wait, whole

STEPS = {"train": 10, "distill": 6, "distill_text": 5, "align": 12}
KILLS = {"train": (160, 8), "distill": (150, 6), "distill_text": (60, 4), "align": (150, 6)}
MOST_IN_A_ROW = 6


def _state_after_kill(run: Path) -> str | None:
    """What is wrong with the folder that a kill left; None if nothing is."""
    seen = sorted(folder.name for folder in (run / "checkpoints").glob("step-*"))
    if seen and not whole(run):
        return f"checkpoints {seen}, none of them whole"
    for file in run.glob("*.json"):
        if not file.read_text().endswith("}\n"):
            return f"{file.name} was cut short"
    return None


def _end_of(shop: Workshop, kind: str, run: Path, want: dict[str, dict[str, str]]) -> str | None:
    """Resume to the end; what differs from the run that was not stopped, None if nothing does."""
    done = shop.run(shop.words(kind, run, STEPS[kind], "resume_from_checkpoint=latest"))
    if done.code != 0:
        return f"the resumed run ended with {done}"
    for name, digests in want.items():
        if tensors(run / name) != digests:
            return f"{name} is not bit-equal"
    left = [path.name for path in run.rglob("*partial*")]
    return f"{left} are left of the killed runs" if left else None


def _killed(shop: Workshop, words: list[object], seconds: float) -> bool:
    """Whether the run was still alive after so many seconds, and was killed."""
    pid = spawn(words, shop.root / "killed.txt")
    time.sleep(seconds)
    alive = os.waitpid(pid, os.WNOHANG)[0] == 0
    if alive:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    return alive


def test_sigkill_at_a_random_moment(shop, kind):
    run = shop.folder(f"kill-{kind}") / "run"
    last = f"checkpoints/step-{STEPS[kind]:06d}"
    shop.must(shop.words(kind, run, STEPS[kind]))
    first = shop.must(shop.words(kind, run.with_name("whole"), STEPS[kind])).seconds
    names = (last, shop.published(kind))
    want = {name: tensors(run / name) for name in names}
    assert all(want.values())
    right = "a verified checkpoint or none, and the resumed run ends with bit-equal tensors"
    with counting("kills", f"SIGKILL at random, {kind}", right) as counts:
        counts.facts["resumed to the end"] = 0
        seed = 0
        while counts.tried < tries(*KILLS[kind]):
            _chain(shop, kind, run, seed, first, want, counts)
            seed += 1


def _chain(shop, kind, run, seed, seconds, want, counts) -> None:
    """A run that is killed some times in a row, then resumed to its end."""
    import shutil

    random_ = random.Random(f"{kind} {seed}")
    shutil.rmtree(run, ignore_errors=True)
    killed = 0
    for _ in range(random_.randint(2, MOST_IN_A_ROW)):
        words = shop.words(kind, run, STEPS[kind], *(["resume_from_checkpoint=latest"] if run.exists() else []))
        if not _killed(shop, words, random_.uniform(0.05, 1.0) * seconds):
            break
        killed += 1
        problem = _state_after_kill(run)
        if problem is not None:
            counts.wrong(f"seed {seed}, kill {killed}: {problem}")
            return
        counts.good("whole checkpoint" if whole(run) else "cleanly none")
    if run.exists():
        problem = _end_of(shop, kind, run, want)
        if problem is not None:
            counts.wrong(f"seed {seed}, after {killed} kills: {problem}")
        else:
            counts.facts["resumed to the end"] += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_at_a_random_moment(shop, number):
    """What asks a run to stop: it saves and says so, or has not begun and leaves nothing; resumed it is bit-equal."""
    import shutil

    run, steps = shop.folder(f"signal-{number.name}") / "run", STEPS["train"]
    seconds = shop.must(shop.words("train", run, steps)).seconds
    want = {name: tensors(run / name) for name in (f"checkpoints/step-{steps:06d}", "model")}
    codes = {75, 130, 0, -number}
    with counting("kills", f"{number.name} at random, train", "saved, exit 75 or 130; resumed bit-equal") as counts:
        for seed in range(tries(30, 3)):
            shutil.rmtree(run, ignore_errors=True)
            pid = spawn(shop.words("train", run, steps), shop.root / "signalled.txt")
            time.sleep(random.Random(seed).uniform(0.05, 1.0) * seconds)
            os.kill(pid, number)
            code = wait(pid)
            problem = None if code in codes else f"exit {code}"
            if problem is None and code in (75, 130) and run.exists() and list(run.glob("checkpoints/step-*")):
                problem = None if whole(run) else "no checkpoint is whole"
            if problem is None and run.exists():
                problem = _end_of_train(shop, run, steps, want)
            counts.judge(problem, "resumed bit-equal" if run.exists() else "had not begun", f"seed {seed}")


def _end_of_train(shop, run, steps, want):
    done = shop.run(shop.words("train", run, steps, "resume_from_checkpoint=latest"))
    if done.code != 0:
        return f"the resumed run ended with {done}"
    differs = [name for name, digests in want.items() if tensors(run / name) != digests]
    return f"{differs} not bit-equal" if differs else None
