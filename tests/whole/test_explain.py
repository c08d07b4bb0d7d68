"""Errors of disk, memory, network and plug-ins are sentences with the exit code of their kind, however wrapped."""

import errno
import os
import sys

import pytest

from diffdistill.errors import CheckpointError, ConfigError, DataError, DiskError
from diffdistill.explain import explained, number_of
from diffdistill.registry import allow_code, load

DISK = sorted(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE", "ENOTDIR", "EISDIR",
        "ENOENT", "EBUSY", "ENXIO", "ESTALE",
    )
)  # fmt: skip


class SafetensorError(Exception):
    """As that of safetensors, which knows no OSError."""


@pytest.mark.parametrize("number", DISK)
def test_every_number_of_the_system_is_exit_code_6(number):
    text = os.strerror(number)
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = OSError(number, text, "/x")
    for error in (
        OSError(number, text, "/x/y"),
        SafetensorError(f"Error while serializing: I/O error: {text} (os error {number})"),
        RuntimeError(f"[Errno {number}] Error writing bytes to file. Detail: [errno {number}] {text}"),
        wrapped,
    ):
        known = explained(error)
        assert type(known) is DiskError
        assert text in str(known)
        assert "unexpected" not in str(known)
        assert str(known).count("\n") == 0


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP])
def test_a_path_that_cannot_be_is_of_usage_and_told_in_short(number):
    known = explained(OSError(number, os.strerror(number), "/" + "x" * 5000))
    assert type(known) is ConfigError
    assert os.strerror(number) in str(known)
    assert len(str(known)) < 400


def test_an_error_of_writing_without_a_number_is_of_the_disk_too():
    assert type(explained(OSError("encoder error -2 when writing image file"))) is DiskError


def test_room_permission_and_open_files_have_their_own_advice():
    words = {errno.EDQUOT: "free space", errno.EROFS: "change its rights", errno.EMFILE: "ulimit -n"}
    for number, advice in words.items():
        assert advice in str(explained(OSError(number, os.strerror(number))))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), ConfigError, "memory does not hold"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), ConfigError,
         "lower the batch size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ConfigError, "memory does not hold"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), DataError, "the network does not answer"),
        (SafetensorError("Error while deserializing header: header too large"), CheckpointError, "weights file"),
        (ValueError("embedded null byte"), ConfigError, "NUL"),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_has_a_sentence(error, kind, words):
    known = explained(error)
    assert type(known) is kind
    assert words in str(known)


def test_a_number_within_other_words_is_none_of_the_system():
    assert number_of(ValueError("shape [28] of error 5")) is None
    assert number_of(OSError("no number")) is None


def test_an_error_of_a_plug_in_names_its_file_and_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import json\n\n\ndef score(images):\n    return json.loads('{')\n", encoding="utf-8")
    allow_code()
    score = load(f"{file}:score")
    with pytest.raises(ValueError, match="Expecting") as caught:
        score(None)
    known = explained(caught.value)
    assert type(known) is ConfigError
    assert str(known).startswith(f"'{file}' line 5 (in score) fails (JSONDecodeError: ")


def test_an_error_of_ours_is_still_told_as_one():
    with pytest.raises(AttributeError) as caught:
        sys.modules["diffdistill.errors"].nothing  # noqa: B018
    assert str(explained(caught.value)).startswith("unexpected AttributeError")
