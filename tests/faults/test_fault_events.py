"""A kill at every event in the file system: the folder as it is at that moment is resumed, and ends bit-equal.

One run copies its folder at each event, which is what SIGKILL would leave there: what is written is in the file, what
a buffer holds is not. `test_the_copy_is_what_a_kill_leaves` says so of real ends.
"""

import hashlib
import os
import shutil
from pathlib import Path

from counts import chosen, counting
from file_events import FileEvents
from harness import Workshop, tensors, whole

STEPS = 2
RIGHT = "a verified checkpoint or none, and the resumed run ends with bit-equal tensors, a report and no leftovers"


def _copying(run: Path, copies: Path):
    """Copy the run folder at each event; an event's folder is named by its number, kind and file."""

    def act(number: int, kind: str, path: str) -> None:
        if run.exists():
            shutil.copytree(run, copies / f"{number:04d} {kind} {path.replace('/', '|')}", symlinks=True)

    return lambda: FileEvents(run, act)


def _ends_well(shop: Workshop, kind: str, run: Path, want: dict[str, dict[str, str]]) -> str | None:
    """Judges a folder that a kill left, then resumes it; None if all is as it must be."""
    if list(run.glob("checkpoints/step-*")) and not whole(run):
        return "no checkpoint is whole"
    done = shop.run(shop.words(kind, run, STEPS, *_settings(kind), "resume_from_checkpoint=latest"))
    if done.code != 0 or not done.clean:
        return f"the resumed run ended with {done}"
    differs = [name for name, digests in want.items() if tensors(run / name) != digests]
    if differs:
        return f"{differs} not bit-equal"
    if not (run / "report.html").is_file():
        return "there is no report"
    left = [path.name for path in run.rglob("*partial*")]
    return f"{left} left" if left else None


def _settings(kind: str) -> list[str]:
    """One checkpoint is kept, so that the second save prunes; a grid is drawn."""
    return ["keep_checkpoints=1", *([] if kind == "align" else ["sample_every=2"])]


def _start(shop: Workshop, kind: str, run: Path, how: str) -> list[str]:
    """The folder that the run begins in: none, or one of a run that was killed after its first step."""
    shutil.rmtree(run, ignore_errors=True)
    if how == "resume":
        shop.must(shop.words(kind, run, 1, *_settings(kind)))
        for name in ("student", "model"):
            shutil.rmtree(run / name, ignore_errors=True)
        (run / "report.html").unlink()
        return ["resume_from_checkpoint=latest"]
    return []


def _attack(shop: Workshop, kind: str, how: str, ci: int) -> None:
    home = shop.folder(f"events-{kind}-{how}")
    run, copies = home / "run", home / "copies"
    copies.mkdir()
    shop.must(shop.words(kind, home / "whole", STEPS, *_settings(kind)))
    names = (f"checkpoints/step-{STEPS:06d}", shop.published(kind))
    want = {name: tensors(home / "whole" / name) for name in names}
    more = _start(shop, kind, run, how)
    done = shop.run(shop.words(kind, run, STEPS, *_settings(kind), *more), _copying(run, copies))
    assert done.code == 0, done
    events = sorted(copies.iterdir())
    assert len(events) > 20, events
    problems: dict[str, str | None] = {}  # by what a folder holds: an fsync leaves the one of the event before
    with counting("kills", f"killed at every file event, {kind}, {how}", RIGHT) as counts:
        for event in chosen(events, ci):
            state = _content(event)
            if state not in problems:
                shutil.rmtree(run)
                event.rename(run)
                problems[state] = _ends_well(shop, kind, run, want)
            counts.judge(problems[state], "resumed bit-equal", f"event {event.name}")
        counts.facts |= {"events": len(events), "different folders": len(problems)}


def _content(folder: Path) -> str:
    """A digest of the names and bytes of everything in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        kind = (path.is_symlink(), path.is_dir())
        digest.update(repr((str(path.relative_to(folder)), kind, hashlib.sha256(inside).hexdigest())).encode())
    return digest.hexdigest()


def test_killed_at_every_event_of_a_run(shop, kind):
    """Making the folder, two saves, a prune, the publishing."""
    _attack(shop, kind, "start", 6)


def test_killed_at_every_event_of_a_resumed_run(shop, kind):
    _attack(shop, kind, "resume", 4)


def test_the_copy_is_what_a_kill_leaves(shop):
    """Of some events: the process ends there, and the folder holds what the copy of that event holds."""
    home = shop.folder("events-real")
    run, copies = home / "run", home / "copies"
    copies.mkdir()
    words = shop.words("train", run, STEPS, *_settings("train"))
    assert shop.run(words, _copying(run, copies)).code == 0
    events = sorted(copies.iterdir())

    def ending(at: int):
        def act(number: int, _kind: str, _path: str) -> None:
            if number == at:
                os._exit(137)

        return lambda: FileEvents(run, act)

    with counting("kills", "a real end at a file event, train", "the folder is that of the copy") as counts:
        for event in chosen(events[3:], 2)[:12]:
            shutil.rmtree(run, ignore_errors=True)
            done = shop.run(words, ending(int(event.name[:4])))
            same = done.code == 137 and _shape(run) == _shape(event)
            counts.judge(None if same else f"{done}; {_shape(run)} is not {_shape(event)}", "the same", event.name)


def _shape(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes, without the numbers of the process and of chance; files with times in them by name alone."""
    import re

    told = ("metrics.jsonl", "environment.json", "state.json", "MANIFEST.json", "report.html")
    files = ((str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*")))
    return sorted(
        (
            re.sub(r"-\d{3,}(-[0-9a-f]{8})?", "-N", name),
            path.stat().st_size if path.is_file() and path.name not in told else 0,
        )
        for name, path in files
    )
