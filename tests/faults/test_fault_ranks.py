"""SIGKILL of one of several processes at any moment: the others end, a verified checkpoint is left or none, and the
run that goes on ends as the one that was never stopped, to the last bit."""

import os
import random
import shutil
import signal
import time
from datetime import timedelta

from counts import counting, tries
from harness import imported
from ranks import ended
from shared_commands import launched, together, weights, whole, words, world

from diffdistill import processes
from diffdistill.training.store import problem_of

STEPS = 6
MINUTE = 60.0
SIZES = (2, 3)
RIGHT = "the others end within a minute; a verified checkpoint or none; resumed on as many it ends bit-equal"


def soon(_rank):
    """A process that never comes is waited for ten minutes; here for some seconds."""
    processes.MEET = timedelta(seconds=8)


def test_sigkill_of_one_process_at_a_random_moment(tmp_path):
    imported()
    place = tmp_path / "ranks"
    config = world(place)
    want, seconds = {}, {}
    for size in SIZES:
        began = time.monotonic()
        done = together(words(config, place / f"whole{size}"), size, place / f"logs{size}")
        assert done.codes == [0] * size, done
        want[size], seconds[size] = weights(place / f"whole{size}", STEPS), time.monotonic() - began
    with counting("kills", "SIGKILL at random of one of several processes, train", RIGHT) as counts:
        for seed in range(tries(50, 4)):
            _try(config, place, seed, want, seconds, counts)


def _try(config, place, seed, want, seconds, counts):
    draw = random.Random(seed)
    size = draw.choice(SIZES)
    rank, moment = draw.randrange(size), draw.uniform(0.02, 1.0) * seconds[size]
    run = place / "run"
    shutil.rmtree(run, ignore_errors=True)
    pids = launched(words(config, run), size, place / "killed", soon)
    time.sleep(moment)
    if os.waitpid(pids[rank], os.WNOHANG)[0]:
        ended([pid for pid in pids if pid != pids[rank]], MINUTE)
        counts.good("had ended")
        return
    os.kill(pids[rank], signal.SIGKILL)
    began = time.monotonic()
    codes = ended(pids, MINUTE)
    wait = counts.facts.get("longest wait in seconds", 0.0)
    counts.facts["longest wait in seconds"] = max(wait, round(time.monotonic() - began, 1))
    saved = sorted((run / "checkpoints").glob("step-*"))
    problem = _problem_of_the_others(place, codes, rank) or _problem_of_what_is_left(saved)
    problem = problem or _problem_of_going_on(config, place, size, want[size])
    counts.judge(
        problem, "whole checkpoint" if saved else "cleanly none", f"seed {seed}, {rank} of {size}, {moment:.2f} s"
    )


def _problem_of_the_others(place, codes, rank):
    """What is wrong, None if nothing is; as below."""
    others = [code for other, code in enumerate(codes) if other != rank]
    if codes[rank] != -signal.SIGKILL or any(code not in (0, 1, 2) for code in others):
        return f"exit codes {codes}"
    said = "".join((place / "killed" / f"{other}.log").read_text() for other in range(len(codes)))
    return f"a traceback: {said[-300:]}" if "Traceback" in said else None


def _problem_of_what_is_left(saved):
    broken = [folder.name for folder in saved if problem_of(folder) is not None]
    return f"{broken} are not whole" if broken else None


def _problem_of_going_on(config, place, size, want):
    run = place / "run"
    done = together(words(config, run, "resume_from_checkpoint=latest"), size, place / "on")
    if done.codes != [0] * size:
        return f"the resumed run ended with {done}"
    same = whole(run)[-1] == f"step-{STEPS:06d}" and weights(run, STEPS) == want
    return None if same else "it is not bit-equal"
