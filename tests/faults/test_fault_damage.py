"""Damaged files: a bit flipped, a tail lost, files gone or exchanged. Each is refused or made anew."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from counts import chosen, counting, tries
from harness import flip
from subjects import NAMES, Subject, subject

FLIPS = {
    "checkpoint": (500, 50), "student": (500, 40), "teacher": (300, 20), "aligned pipeline": (150, 6),
    "reference cache": (300, 30), "statistics file": (250, 30), "bundled teacher": (150, 10),
    "bundled features": (100, 8), "bundled data": (100, 6),
}  # fmt: skip
HEAD = 512  # bytes; half of the flips go there, where formats have their words
RIGHT = "refused with a sentence, or made anew, or what is read is the same, or a warning says what is lost"


@pytest.fixture(params=NAMES)
def target(request, shop, monkeypatch):
    return subject(shop, request.param, monkeypatch)


def test_one_flipped_bit(target: Subject):
    with counting("damage", f"one flipped bit, {target.name}", RIGHT) as counts:
        for seed in range(tries(*FLIPS[target.name])):
            random_ = random.Random(f"{target.name} {seed}")
            # Every file equally often, so that small ones are hit too.
            file = target.files[seed % len(target.files)]
            original = file.read_bytes()
            if not original:
                continue
            position = random_.randrange(min(len(original), HEAD) if random_.random() < 0.5 else len(original))
            bit = random_.randrange(8)
            file.write_bytes(flip(original, position, bit))
            problem, outcome = target.outcome()
            file.write_bytes(original)
            around = slice(max(0, position - 12), position + 12)
            which = f"seed {seed}: {file.name}, byte {position}, bit {bit}, {original[around]!r}"
            counts.judge(problem, outcome, which)
    assert target.outcome()[0] is None  # all is mended


Damage = Callable[[Path, bytes], object]


def _cuts(size: int) -> list[int]:
    near = [0, 1, 7, 8, 9, size // 2, size - 1]
    return sorted({cut for cut in (*near, *range(4096, size, 4096)) if 0 <= cut < size})


def _damages(file: Path, files: list[Path], data: bytes) -> Iterator[tuple[str, Damage]]:
    size, other = len(data), files[(files.index(file) + 1) % len(files)]
    cuts = _cuts(size)
    for cut in cuts if len(cuts) < 14 else [*cuts[:5], *cuts[5 : -2 : len(cuts) // 6], *cuts[-2:]]:
        yield f"cut to {cut} bytes", lambda f, d, cut=cut: f.write_bytes(d[:cut])
    for tail in {1, size // 2, size}:
        yield f"last {tail} bytes zero", lambda f, d, t=tail: f.write_bytes(d[: len(d) - t] + bytes(t))
    yield "deleted", lambda f, d: f.unlink()
    yield "written twice", lambda f, d: f.write_bytes(d + d)
    if other != file:
        yield f"with the content of {other.name}", lambda f, d, o=other: shutil.copyfile(o, f)
    yield "a folder instead", lambda f, d: (f.unlink(), f.mkdir())
    yield "a link that leads nowhere", lambda f, d: (f.unlink(), f.symlink_to("nowhere"))


def test_files_cut_zeroed_lost_and_exchanged(target: Subject):
    data = {file: file.read_bytes() for file in target.files}
    cases = [(file, *case) for file in target.files for case in _damages(file, target.files, data[file])]
    random.Random(0).shuffle(cases)
    with counting("damage", f"cut, zeroed, lost or exchanged files, {target.name}", RIGHT) as counts:
        for file, name, damage in chosen(cases[:150], 7):
            damage(file, data[file])
            problem, outcome = target.outcome()
            _mend(file, data[file])
            counts.judge(problem, outcome, f"{file.name} {name}")
    assert target.outcome()[0] is None


def _mend(file: Path, data: bytes) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    elif file.is_symlink():
        file.unlink()
    file.write_bytes(data)
