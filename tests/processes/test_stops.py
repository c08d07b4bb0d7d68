"""Signals and kills of one of several processes, and going on with as many, fewer or more of them."""

import os
import signal
from datetime import timedelta

import pytest
from safetensors.torch import load_file
from same_run import UNSEEN
from shared_commands import LIMIT, digests, together, weights, whole, words, world

from diffdistill import processes
from diffdistill.training.store import CheckpointStore
from diffdistill.training.tasks.teacher import TeacherTask

STEPS = 6
LATEST = "resume_from_checkpoint=latest"
MINUTE = 60.0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """The run folder of as many processes, never stopped."""
    known = {}

    def of(size):
        if size not in known:
            run = tmp_path_factory.mktemp(f"whole{size}") / "run"
            done = together(words(config, run), size, run.parent)
            assert done.codes == [0] * size, done
            known[size] = run
        return known[size]

    return of


def at_step(step, rank, act):
    """Before that update of process `rank`, `act` is called there."""

    def within(mine):
        if mine != rank:
            return
        update = TeacherTask.update

        def acting(self, number):
            if number == step:
                act()
            return update(self, number)

        TeacherTask.update = acting

    return within


def sends(number):
    return lambda: os.kill(os.getpid(), number)


def stopped(config, run, size, step, number=signal.SIGTERM, rank=0, more=(), limit=LIMIT):
    log = run.parent / f"log{step}"
    return together(words(config, run, *more), size, log, at_step(step, rank, sends(number)), limit)


def near(one, other):
    """Tensors of the last checkpoints are those of each other to 1e-6."""
    for file in sorted((one / "checkpoints" / f"step-{STEPS:06d}").glob("*.safetensors")):
        mine, theirs = load_file(file), load_file(other / file.relative_to(one))
        assert mine.keys() == theirs.keys()
        for name in [name for name in mine if not name.endswith(UNSEEN)]:
            value = mine[name]
            bound = 1e-6 * max(1.0, float(value.double().abs().max()))
            assert float((value.double() - theirs[name].double()).abs().max()) <= bound, (file.name, name)


@pytest.mark.parametrize(
    ("number", "rank", "size"),
    [
        (signal.SIGTERM, 1, 2),
        pytest.param(signal.SIGTERM, 0, 3, marks=pytest.mark.dist),
        pytest.param(signal.SIGUSR1, 2, 3, marks=pytest.mark.dist),
        pytest.param(signal.SIGINT, 1, 2, marks=pytest.mark.dist),
    ],
)
def test_a_signal_to_any_is_obeyed_by_all(config, uninterrupted, tmp_path, number, rank, size):
    run = tmp_path / "run"
    done = stopped(config, run, size, 2, number, rank)
    assert done.codes == [130 if number == signal.SIGINT else 75] * size, done
    (told,) = done.errors()
    assert told[0] == 0
    assert "stopped at step 3, state saved" in told[1]
    assert whole(run)[-1] == "step-000003"
    assert together(words(config, run, LATEST), size, tmp_path / "on").codes == [0] * size
    assert weights(run, STEPS) == weights(uninterrupted(size), STEPS)  # to the last bit
    assert digests(run / "model").keys() == digests(uninterrupted(size) / "model").keys()


@pytest.mark.dist
def test_a_run_goes_on_with_fewer_and_more_processes(config, uninterrupted, tmp_path):
    run = tmp_path / "run"
    assert stopped(config, run, 2, 1).codes == [75, 75]
    at_two = weights(run, 2)
    assert stopped(config, run, 1, 3, more=(LATEST,)).codes == [75]
    assert weights(run, 2) == at_two
    assert together(words(config, run, LATEST), 4, tmp_path / "on").codes == [0] * 4
    assert whole(run) == [f"step-{step:06d}" for step in range(1, STEPS + 1)]
    for size in (1, 2, 4):
        near(uninterrupted(size), run)
    back = tmp_path / "back"  # of one, gone on with two and with one again
    assert stopped(config, back, 1, 1).codes == [75]
    assert stopped(config, back, 2, 3, more=(LATEST,)).codes == [75, 75]
    assert together(words(config, back, LATEST), 1, tmp_path / "on1").codes == [0]
    near(uninterrupted(1), back)


@pytest.mark.dist
def test_who_resumes_changes_no_bit_of_what_was_saved(config, uninterrupted, tmp_path):
    """Four processes go on from what two have saved: the first step after it is that of four, from the same bits."""
    run, other = tmp_path / "run", tmp_path / "other"
    assert stopped(config, run, 2, 2).codes == [75, 75]
    assert stopped(config, other, 2, 2).codes == [75, 75]
    assert together(words(config, run, LATEST), 4, tmp_path / "one").codes == [0] * 4
    assert stopped(config, other, 4, 4, more=(LATEST,)).codes == [75] * 4
    assert together(words(config, other, LATEST), 4, tmp_path / "two").codes == [0] * 4
    assert weights(run, STEPS) == weights(other, STEPS)


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_save(number):
    """The leader dies when its checkpoint is written and not yet in its place."""

    def within(rank):
        if rank:
            return
        save = CheckpointStore.save

        def dying(self, step, *more, **settings):
            if step == number:
                os.fsync = lambda _: dies()  # of the first file that is to last
            return save(self, step, *more, **settings)

        CheckpointStore.save = dying

    return within


def in_a_sum(rank):
    """A process dies where the others sum their gradients."""

    def within(mine):
        if mine != rank:
            return
        summed, calls = processes.sum_gradients, []

        def dying(parameters):
            calls.append(1)
            if len(calls) == 4:
                dies()
            return summed(parameters)

        processes.sum_gradients = dying

    return within


KILLS = {
    "in a step": (at_step(3, 1, dies), 2, 1, 3),
    "the leader in a step": (at_step(3, 0, dies), 3, 0, 3),
    "in a sum": (in_a_sum(2), 3, 2, 3),
    "the leader in a save": (in_a_save(3), 2, 0, 2),
    "before they have met": (lambda rank: rank or dies(), 2, 0, 0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "in a step" else [pytest.mark.dist]) for name in KILLS]
)
def test_where_one_is_killed_the_others_end_and_nothing_is_lost(config, uninterrupted, tmp_path, name):
    within, size, rank, left = KILLS[name]
    run = tmp_path / "run"

    def quick(mine):
        processes.MEET = timedelta(seconds=15)  # in which one that died is waited for
        within(mine)

    done = together(words(config, run), size, tmp_path / "logs", quick, MINUTE)
    assert done.codes[rank] == -signal.SIGKILL
    assert [code for other, code in enumerate(done.codes) if other != rank] == [1 if left else 2] * (size - 1), done
    for _, line in done.errors():
        assert "another process of this run has ended" in line or "does not find the others" in line
    saved = [] if left == 0 else [f"step-{step:06d}" for step in range(1, left + 1)]
    found = sorted(folder.name for folder in run.glob("checkpoints/step-*"))
    assert found == saved
    again = together(words(config, run, LATEST), size, tmp_path / "on")
    assert again.codes == [0] * size, again
    assert whole(run)[-1] == f"step-{STEPS:06d}"
    assert weights(run, STEPS) == weights(uninterrupted(size), STEPS)
