"""Files and folders that take another's place: whole at every moment, with names that nobody has."""

import os

import pytest

from diffdistill import files
from diffdistill.errors import ConfigError
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


@pytest.mark.parametrize("opened", ["[", "{"])
def test_json_of_more_lists_than_memory_holds_is_refused_before_it_is_parsed(opened):
    few = '"[[[{"'  # in a text they count too, which is nothing among millions
    assert files.parse_json(few) == "[[[{"
    with pytest.raises(ValueError, match="more than 4,000,000 lists"):
        files.parse_json(opened * 4_000_001)
    with pytest.raises(ValueError, match="more than 4,000,000 lists"):
        files.parse_json(opened.encode() * 4_000_001)


def test_json_that_is_nested_too_deep_is_an_error_like_another():
    with pytest.raises(ValueError, match="nested too deep"):
        files.parse_json("[" * 200_000 + "]" * 200_000)


def test_a_bound_is_the_last_size_that_is_read(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert files.read_bounded(file, 5) == b"12345"
    with pytest.raises(ValueError, match="larger than"):
        files.read_bounded(file, 4)


def test_a_json_file_has_a_bound_that_no_index_reaches(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "read_bounded", lambda file, most: (asked.append(most), b"1")[1])
    assert files.read_json(tmp_path / "a.json") == 1
    assert 1e8 < asked[0] < 1e9  # bytes: it is held in memory several times over


def test_numbers_that_json_has_no_words_for_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_exchange_that_fails_halfway_gives_the_old_folder_its_name_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    rename = type(target).rename

    def fails(self, to):
        if "partial" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", fails)
    with pytest.raises(OSError, match="Input/output"), replacing_folder(target) as staged:
        staged.mkdir()
    assert (target / "weights").read_text() == "old"


def test_a_folder_that_takes_anothers_place_is_on_the_disk_first(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(files, "sync", lambda path: events.append(path.name.split(".partial")[0]))
    monkeypatch.setattr(files, "_exchange", lambda one, other: events.append("EXCHANGE") or False)
    (tmp_path / "model").mkdir()
    with replacing_folder(tmp_path / "model") as staged:
        staged.mkdir()
        (staged / "weights").touch()
    assert events == ["weights", ".model", "EXCHANGE", tmp_path.name]


@pytest.mark.skipif(os.name == "nt", reason="needs modes")
def test_weights_are_as_open_as_other_files_and_a_full_folder_is_not_touched(tmp_path):
    with new_folder(tmp_path / "model") as staged:
        (staged / "a.safetensors").touch(mode=0o600)
        (staged / "b.json").touch(mode=0o666)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes["a.safetensors"] == modes["b.json"]
    with pytest.raises(ConfigError, match="already holds files"), new_folder(tmp_path / "model"):
        raise AssertionError("not reached")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
