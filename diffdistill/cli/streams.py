"""Standard output and error that lose no result: closed ones, readers that have gone, terminals of ASCII alone."""

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

PLAIN = str.maketrans({
    "±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "“": '"', "”": '"', "‘": "'", "’": "'",
    "→": "->", "≤": "<=", "≥": ">=", "α": "alpha", "β": "beta", "σ": "sigma", "é": "e",
})  # fmt: skip
ERRORS = "diffdistill.plain"


def plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a terminal cannot show: the nearest of ASCII, else their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end].translate(PLAIN)
    return wrong.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ERRORS, plain)


class Steady:
    """A text stream that goes silent once its reader has gone (`| head`): the work goes on, and so do its files."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.silence()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.silence()

    def silence(self) -> None:
        """Send the rest nowhere; what the stream still holds goes there too, so no later flush fails."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Within, printing never fails for want of a reader or a character, and a missing stream is one to nowhere."""
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if stream is not None and hasattr(stream, "reconfigure"):
            # It flushes: a full disk, or a pipe in the place of a file, is told by the first write instead.
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=ERRORS)
    missing = [stream is None for stream in before]
    sys.stdout, sys.stderr = (
        Steady(open(os.devnull, "w", encoding="utf-8") if stream is None else stream)  # noqa: SIM115
        for stream in before
    )
    ours = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, absent in zip(ours, missing, strict=True):
            if absent:
                stream.close()


def _open_closed() -> None:
    """Fill closed descriptors 0 to 2, so that no file that is opened later is taken for the terminal."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
