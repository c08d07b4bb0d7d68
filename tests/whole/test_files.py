"""Files and folders that take another's place: whole at every moment, with names that nobody has."""

import os

import pytest

from diffdistill import files
from diffdistill.files import LEFTOVER, beside, new_folder, replacing, replacing_folder, write_text


def test_names_on_the_way_differ_in_one_process_and_are_known_as_leftovers(tmp_path):
    first, second = beside(tmp_path / "a.json"), beside(tmp_path / "a.json")
    assert first != second  # a restarted container has the process number of the killed one
    assert first.suffix == ".json"
    mine = [first.name, beside(tmp_path / "step-000002", "old").name, ".step-000002.partial-99", ".x.partial-1.png"]
    assert all(LEFTOVER.fullmatch(name) for name in mine)
    theirs = [".gitignore", "a.partial-1", ".notes.partial", ".x.partial-abc", ".cache.old"]
    assert not [name for name in theirs if LEFTOVER.fullmatch(name)]


def test_what_a_killed_process_of_this_number_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".student.partial-{os.getpid()}").mkdir()
    (tmp_path / f".a.partial-{os.getpid()}.txt").mkdir()
    with new_folder(tmp_path / "student") as staged:
        (staged / "x").write_text("x")
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "student" / "x").is_file()
    assert (tmp_path / "a.txt").read_text() == "a"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_by_one_that_is_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replacing_folder(target) as staged:
            staged.mkdir()
            (staged / "weights").write_text(text)
            assert not target.exists() or (target / "weights").read_text() == "first"
        assert (target / "weights").read_text() == text
    with pytest.raises(FileNotFoundError), replacing_folder(target) as staged:
        (staged / "absent" / "weights").write_text("third")
    assert (target / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc, which knows the file of a descriptor")
def test_what_appears_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """The content of each file, then the name that says that it is whole, then the folder that holds the name."""
    events = []
    sync, replace = os.fsync, os.replace

    def noted(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).split(".partial")[0])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("RENAME"), replace(*names)))
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("x")
    assert events == [".a", "RENAME", tmp_path.name]
    events.clear()
    with new_folder(tmp_path / "model") as staged:
        (staged / "unet").mkdir()
        (staged / "unet" / "weights").write_text("x")
    assert sorted(events) == sorted(["unet", "weights", ".model", tmp_path.name])
    assert events[-2:] == [".model", tmp_path.name]
