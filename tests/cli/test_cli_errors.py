"""Whatever goes wrong while a verb runs is one line, and the exit code says of what kind."""

import errno

import pytest

from diffdistill import errors


def raising(error):
    def behaviour(what):
        raise error

    return behaviour


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (errors.ConfigError("c"), 2, "c"),
        (errors.DataError("d"), 3, "d"),
        (errors.CheckpointError("m"), 4, "m"),
        (errors.NonFiniteError("n"), 5, "n"),
        (errors.DiskError("f"), 6, "f"),
        (errors.Preempted("p"), 75, "p"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            6,
            "no room left on the disk ('/x/y': No space left",
        ),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 6, "no room left on the disk (I/O error"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            6,
            "no permission ('/x': Permission denied); choose",
        ),
        (ValueError("bad\nworse"), 1, "unexpected ValueError: bad (--debug shows the traceback)"),
        (ZeroDivisionError(), 1, "unexpected ZeroDivisionError: no message (--debug shows the traceback)"),
    ],
)
def test_any_exception_is_one_line_and_its_exit_code(stub, ask, error, code, sentence):
    stub("report", raising(error))
    found, out, err = ask("report", "run")
    assert (found, out) == (code, "")
    assert err.startswith(f"diffdistill: error: {sentence}")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback_and_then_the_line(stub, ask):
    stub("report", raising(ValueError("bad")))
    code, _, err = ask("report", "run", "--debug")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("diffdistill: error: unexpected ValueError: bad")


def test_several_problems_are_several_lines(ask, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("sede: 1\noutput_dirr: a\n")
    code, _, err = ask("train", str(path))
    assert code == 2
    assert [line.split(": ", 2)[:2] for line in err.splitlines()] == [["diffdistill", "error"]] * 3


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "builtin:fashion_mnist_teacher", "--num-images", "1", "--out"),
        ("export", "builtin:emoji_teacher", "--format", "diffusers", "--out"),
        ("calibrate", "builtin:fashion_mnist_teacher", "--data", "builtin:fashion_mnist", "--out"),
        ("data", "inspect", "builtin:fashion_mnist", "--limit", "2", "--out"),
        ("report",),
    ],
)
def test_a_path_that_no_system_has_is_of_usage_in_one_short_sentence(ask, words):
    code, out, err = ask(*words, "x" * 5000)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert len(err) < 600
