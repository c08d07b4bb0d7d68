"""Whoever reads the output, or does not, the work is done, and its exit code is that of the work."""

import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest

from diffdistill.cli import front
from diffdistill.cli.streams import Steady, steady

MAIN = """
import sys
from diffdistill.cli import front
def verb(args):
    for line in range(20000):
        print("±", line)
    open("done", "w", encoding="utf-8").close()
    return 0
import types
fake = types.ModuleType(front.verbs()["report"].target.split(":")[0]); fake.run = verb
sys.modules[fake.__name__] = fake
sys.exit(front.main(["report", "r"]))
"""


def shell(line, folder, root, **env):
    line = line.replace("DIFFDISTILL", f"'{sys.executable}' main.py")
    (folder / "main.py").write_text(MAIN, encoding="utf-8")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, capture_output=True, check=False, timeout=60,
        env=os.environ | {"PYTHONPATH": str(root)} | env,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["DIFFDISTILL | head -1", "DIFFDISTILL >&-", "DIFFDISTILL >&- 2>&- <&-", "DIFFDISTILL 2>&1 | head -c 1"],
)
def test_a_reader_that_goes_or_never_was_loses_no_work(line, tmp_path, root):
    done = shell(line, tmp_path, root)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").is_file()


def test_a_terminal_of_ascii_shows_what_it_can(tmp_path, root):
    done = shell("DIFFDISTILL", tmp_path, root, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[7] == b"+- 7"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_a_full_disk_behind_stdout_is_exit_code_6(tmp_path, root):
    done = shell("DIFFDISTILL > /dev/full", tmp_path, root)
    assert done.returncode == 6
    assert done.stderr.count(b"\n") == 1
    assert b"no room left on the disk" in done.stderr


def test_streams_that_are_missing_are_ones_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with steady():
        print("nobody reads this", flush=True)
    assert sys.stdout is None


def test_characters_that_cannot_be_shown_become_plain_ones(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with steady():
        print("0.96 ± 0.08 × 2, \udcff 猫", flush=True)
    assert raw.getvalue() == b"0.96 +- 0.08 x 2, \\udcff \\u732b\n"


def test_a_stream_keeps_its_other_abilities():
    assert Steady(io.StringIO()).getvalue() == ""


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="signals of POSIX")
def test_a_signal_to_end_unwinds_and_leaves_the_handlers_as_they_were(stub, ask):
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def work(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    stub("report", work)
    code, _, err = ask("report", "r")
    assert (code, cleaned) == (130, [True])
    assert "ended by SIGTERM" in err
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_of_the_caller_stay_the_callers(stub, ask):
    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, mine)
    try:
        seen = stub("report", lambda _: signal.getsignal(signal.SIGTERM))
        ask("report", "r")
        assert seen
        with front.asked_to_end():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stream_that_cannot_be_flushed_ends_nothing(monkeypatch, tmp_path):
    """As of a file whose descriptor became a pipe: what it holds cannot be put where it was to go."""
    stream = (tmp_path / "log").open("w", encoding="utf-8")
    stream.write("before")
    stream.seek(0)
    reader, writer = os.pipe()
    os.dup2(writer, stream.fileno())
    monkeypatch.setattr(sys, "stdout", stream)
    with steady():
        assert sys.stdout.stream is stream
    with contextlib.suppress(OSError):
        stream.close()
    for end in (reader, writer):
        os.close(end)
