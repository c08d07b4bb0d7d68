"""Files to answer into are refused before the work; what is written is whole, on a device, behind a link, and JSON."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diffdistill.errors import ConfigError, DiskError
from diffdistill.files import new_folder, replacing, write_text
from diffdistill.outputs import check_output, has_keys, write_answer


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("mine").write_text("precious", encoding="utf-8")
    Path("ours.json").write_text('{"checks": [], "ok": true}', encoding="utf-8")
    Path("half.json").write_text('{"ok": "it is"}', encoding="utf-8")
    Path("empty").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("folder", "is a folder; name a file"),
        ("", "is a folder; name a file"),
        ("absent/x", "there is no folder"),
        ("mine/x", "there is no folder"),
        ("mine", "exists and holds something else"),
        ("half.json", "exists and holds something else"),
        ("n" * 300, "cannot be a file (File name too long)"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(target, words):
    with pytest.raises(ConfigError) as caught:
        check_output(target, "--json", has_keys("ok", "checks"))
    assert words in str(caught.value)


def test_what_may_be_written_is_not_refused():
    for target in ("-", "new", "empty", "ours.json", "/dev/null" if os.name == "posix" else "new"):
        check_output(target, "--json", has_keys("ok", "checks"))
    with pytest.raises(ConfigError):
        check_output("ours.json", "--plot")


def test_a_folder_without_permission_is_of_the_disk(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DiskError, match="nothing can be written in"):
        check_output("new", "--json")


def test_an_answer_is_json_whatever_computed_it(capsys):
    value = {"a": float("nan"), "b": [np.float32(0.5), torch.tensor(2)], "c": (True, None), 1: Path("p"), "i": np.inf}
    write_answer("-", value)
    assert json.loads(capsys.readouterr().out) == {"a": "nan", "b": [0.5, 2], "c": [True, None], "1": "p", "i": "inf"}
    write_answer("new", {"x": 1})
    assert json.loads(Path("new").read_text("utf-8")) == {"x": 1}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_a_device_is_written_to_and_stays_one():
    device = Path("/dev/full")
    with pytest.raises(DiskError, match="No space left"):
        write_answer(device, {})
    write_text(Path("/dev/null"), "gone")
    assert device.is_char_device()
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_behind_a_link_its_file_is_replaced_and_its_folder_filled(folder):
    Path("link").symlink_to("mine")
    write_text(Path("link"), "new")
    assert Path("link").is_symlink()
    assert Path("mine").read_text("utf-8") == "new"
    Path("way").symlink_to(folder / "folder")
    with new_folder(Path("way")) as staged:
        (staged / "a").touch()
    assert Path("way").is_symlink()
    assert [path.name for path in Path("folder").iterdir()] == ["a"]


def test_the_current_folder_is_filled_and_stays_the_same_one(folder, monkeypatch):
    monkeypatch.chdir("folder")
    before = os.stat(".").st_ino
    with new_folder(Path(".")) as staged:
        (staged / "a").mkdir()
        (staged / "a" / "b").touch()
    assert os.stat(".").st_ino == before
    assert sorted(path.name for path in (folder / "folder").rglob("*")) == ["a", "b"]


def test_names_as_long_as_a_system_allows_are_written():
    name = Path("n" * 250 + ".json")
    write_text(name, "x")
    assert name.read_text("utf-8") == "x"
    with new_folder(Path("f" * 250)) as staged:
        (staged / "a").touch()
    assert Path("f" * 250).is_dir()


@pytest.mark.parametrize("target", ["mine/x", "n" * 300])
def test_a_folder_that_cannot_be_is_one_sentence(target):
    with pytest.raises(ConfigError, match="name another path"), new_folder(Path(target)):
        raise AssertionError("not reached")


def test_an_error_while_writing_leaves_the_old_file():
    with pytest.raises(RuntimeError), replacing(Path("mine")) as partial:  # noqa: PT012
        partial.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert Path("mine").read_text("utf-8") == "precious"
    assert not list(Path().glob(".mine*"))


def test_a_folder_that_a_disk_is_mounted_on_is_filled_and_stays(folder, monkeypatch):
    before = os.stat("folder").st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "folder")
    with new_folder(Path("folder")) as staged:
        assert staged.parent == Path("folder")  # a rename across disks is none
        (staged / "a").touch()
    assert os.stat("folder").st_ino == before
    assert [path.name for path in Path("folder").iterdir()] == ["a"]
