"""A disk that is full, over quota, broken or too small for a file, at every write: exit 6, nothing lost."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from counts import chosen, counting, tries
from file_events import FileEvents
from harness import Done, Workshop, tensors, whole

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
KINDS = frozenset({"open", "write", "fsync", "mkdir", "rename", "tensors, before", "tensors, half"})
RIGHT = "exit 6 in one sentence; what was whole before is whole"


def failing(root: Path, at: int, number: int):
    """The event `at` fails as a disk does; so does everything that needs room after it, as on a full disk."""

    def act(event: int, kind: str, path: str) -> None:
        if event == at or (event > at and number in (errno.ENOSPC, errno.EDQUOT) and kind != "rename"):
            fail(kind, path, number)

    def fail(kind: str, path: str, number: int) -> None:
        if kind.startswith("tensors"):
            from safetensors import SafetensorError

            words = f"{os.strerror(number)} (os error {number})"
            raise SafetensorError(f"Error while serializing: I/O error: {words}")
        raise OSError(number, os.strerror(number), path)

    return lambda: FileEvents(root, act, KINDS)


def events_of(shop: Workshop, words: list[object], root: Path) -> list[str]:
    """What a command line writes, event for event."""
    seen = shop.root / "seen.txt"
    descriptor = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def act(_number: int, kind: str, path: str) -> None:
        os.pwrite(descriptor, f"{kind} {path}\n".encode(), os.lseek(descriptor, 0, os.SEEK_END))

    done = shop.run(words, lambda: FileEvents(root, act, KINDS))
    os.close(descriptor)
    assert done.code == 0, done
    return seen.read_text().splitlines()


def sentence(done: Done) -> str | None:
    """What is wrong with how a command failed; None for exit 6 and one line."""
    if done.code != 6 or not done.clean:
        return str(done)
    lines = [line for line in done.text.splitlines() if "error:" in line]
    return None if len(lines) == 1 else f"{len(lines)} sentences: {lines}"


def _pairs(count: int) -> list[tuple[int, int]]:
    """Every event, with each error in turn."""
    return [(at, ERRORS[at % len(ERRORS)]) for at in range(count)]


@pytest.mark.parametrize("verb", ["train", "distill", "align"])
def test_a_run_whose_disk_fails_at_any_write(shop, verb):
    """A resumed run: its first checkpoint is there, the next is written, the model published, the report."""
    if verb == "align":
        pytest.importorskip("transformers")
    home = shop.folder(f"disk-{verb}")
    run, base = home / "run", home / "base"
    shop.must(shop.words(verb, base, 1, "evaluation.at_end=false"))
    for name in ("model", "student"):
        shutil.rmtree(base / name, ignore_errors=True)
    (base / "report.html").unlink()
    words = shop.words(verb, run, 2, "resume_from_checkpoint=latest")
    shutil.copytree(base, run)
    events = events_of(shop, words, run)
    want, first = tensors(run / "checkpoints/step-000002"), tensors(base / "checkpoints/step-000001")
    with counting("disk", f"a failing disk at every write, {verb}", RIGHT) as counts:
        counts.facts["writes"] = len(events)
        for at, number in chosen(_pairs(len(events)), 5):
            shutil.rmtree(run)
            shutil.copytree(base, run)
            done = shop.run(words, failing(run, at, number))
            problem = sentence(done)
            if problem is None and (not whole(run) or tensors(run / "checkpoints/step-000001") != first):
                problem = "the earlier checkpoint is lost"
            if problem is None and at % 5 == 0:  # with room again it goes on, bit-equal
                again = shop.run(words)
                equal = again.code == 0 and tensors(run / "checkpoints/step-000002") == want
                problem = None if equal else f"resumed with room: {again}"
            which = f"event {at} ({events[at]}), {errno.errorcode[number]}"
            counts.judge(problem, "exit 6", which)


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_a_command_whose_disk_fails_at_any_write(shop, verb):
    home = shop.folder(f"disk-{verb}")
    student, data = shop.root / "student" / "student", shop.root / "data.npz"
    words = {
        "sample": ["sample", student, "--num-images", 3, "--out", home / "out" / "images"],
        "evaluate": [
            "evaluate", "--model", student, "--reference", data, "--features", "pixels", "--num-images", 6,
            "--json", home / "out" / "figures.json",
        ],
    }[verb]  # fmt: skip
    (home / "out").mkdir()
    events = events_of(shop, words, home / "out")
    pairs = [(at, number) for at in range(len(events)) for number in ERRORS]
    with counting("disk", f"a failing disk at every write, {verb}", f"{RIGHT}; nothing half written") as counts:
        counts.facts["writes"] = len(events)
        for at, number in chosen(pairs, 4):
            shutil.rmtree(home / "out")
            (home / "out").mkdir()
            done = shop.run(words, failing(home / "out", at, number))
            problem = sentence(done)
            left = [path.name for path in (home / "out").iterdir()]
            # The last event is the folder's own sync, after the result has its name: it is there, and whole.
            if problem is None and left and at < len(events) - 1:
                problem = f"{left} left"
            counts.judge(problem, "exit 6", f"event {at} ({events[at]}), {errno.errorcode[number]}")


def test_a_limit_of_the_system_on_the_size_of_files(shop):
    """RLIMIT_FSIZE, the real thing: the system stops the write of what is larger."""
    base = shop.folder("limit") / "base"
    run = base.with_name("run")
    shop.must(shop.words("train", base, 1))
    sizes = [300, 3_000, 20_000, 61_000, 62_000, 100_000]
    with counting("disk", "RLIMIT_FSIZE, train", RIGHT) as counts:
        for size in sizes[: tries(len(sizes), 2)]:
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(base, run)

            def limit(size: int = size) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

            done = shop.run(shop.words("train", run, 2, "resume_from_checkpoint=latest"), limit)
            problem = sentence(done)
            if problem is None and not whole(run):
                problem = "the earlier checkpoint is lost"
            counts.judge(problem, "exit 6", f"{size} bytes")
