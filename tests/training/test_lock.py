"""One process at a time in a run folder; a lock ends with its process; leftovers go, and only ours."""

import os
import socket
import subprocess
import sys

import pytest

from diffdistill.errors import ConfigError
from diffdistill.training import lock as module
from diffdistill.training.lock import LOCK, OWNER, locked, remove_leftovers


@pytest.fixture(params=["of the system", "by name"])
def kind(request, monkeypatch):
    if request.param == "by name":

        def no_locks(descriptor):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(module, "try_lock", no_locks)
    return request.param


def test_a_second_one_is_refused_in_a_sentence_and_the_folder_is_free_afterwards(tmp_path, kind):
    with locked(tmp_path):
        if kind == "by name":  # of another process: this one's own are of a killed one with the same number
            (tmp_path / OWNER).write_text(f"{socket.gethostname()} {module._boot()} {os.getppid()}")
        with pytest.raises(ConfigError, match="another process is at work in") as error, locked(tmp_path):
            pass
        assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_a_killed_process_leaves_the_folder_free(tmp_path):
    code = f"""
import os, pathlib
from diffdistill.training.lock import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    print("mine", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(ConfigError), locked(tmp_path):
        pass
    other.kill()
    other.communicate()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ("{host} another-boot 1", True),  # the machine was restarted
        ("{host} {boot} 999999999", True),  # killed
        ("{host} {boot} {me}", True),  # a container's process, which has the number of the killed one
        ("", True),
        ("{host} {boot} {parent}", False),
        ("elsewhere another-boot 1", False),  # nobody here can tell
    ],
)
def test_a_lock_by_name_is_stale_where_its_process_cannot_live(tmp_path, monkeypatch, owner, free):
    monkeypatch.setattr(module, "try_lock", lambda descriptor: (_ for _ in ()).throw(OSError(95, "not supported")))
    words = {"host": socket.gethostname(), "boot": module._boot(), "me": os.getpid(), "parent": os.getppid()}
    (tmp_path / OWNER).write_text(owner.format(**words))
    taken = None
    try:
        with locked(tmp_path):
            taken = (tmp_path / OWNER).read_text()
    except ConfigError:
        assert not free
        assert (tmp_path / OWNER).read_text() == owner.format(**words)
    else:
        assert free
        assert taken.endswith(f" {os.getpid()}")
    assert not [path for path in tmp_path.iterdir() if path.name not in (LOCK, OWNER)]


def test_leftovers_go_and_what_others_named_stays(tmp_path):
    ours = [
        ".config.partial-7.yaml",
        ".step-000002.partial-7",
        ".student.gone-7-0123abcd",
        ".a.partial-7-0123abcd.png",
    ]
    for name in ours:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    theirs = [".gitignore", "notes.partial-7", ".notes", "step-000001"]
    for name in theirs:
        (tmp_path / name).touch()
    (tmp_path / ".model.old-7-0123abcd").mkdir()  # a kill came between two renames
    (tmp_path / ".student.old-7-0123abcd").mkdir()
    (tmp_path / "student").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, "model", "student"])


def test_a_leftover_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / ".a.partial-7").mkdir()

    def stays(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "discard", stays)
    remove_leftovers(tmp_path)
    assert "left by a killed run (Read-only file system)" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_lock_on_a_file_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """Its holder removes it at the end: who waited between opening and locking holds what no third process sees."""
    real, calls = module.try_lock, []

    def removed_first(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        return real(descriptor)

    monkeypatch.setattr(module, "try_lock", removed_first)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(ConfigError, match="another process is at work"), locked(tmp_path):
            pass


def test_what_another_process_put_there_meanwhile_is_given_back(tmp_path):
    """Two see the same dead owner; the slower one would remove the quicker one's name."""
    owner = tmp_path / OWNER
    owner.write_text("quicker boot 7")
    assert not module._taken_away(owner, "dead boot 7")
    assert owner.read_text() == "quicker boot 7"
    assert module._taken_away(owner, "quicker boot 7")
    assert list(tmp_path.iterdir()) == []
