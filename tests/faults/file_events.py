"""Every event of a process in the file system below a folder, and something done at each: a copy, an end, an error.

Events: opening for writing, half of a write, fsync, renaming, removing, making and removing folders, and a file of
tensors before, half written and after. Python's own come by an audit hook, which cannot be taken off again, and by
files that are wrapped: install it in a child only. What safetensors writes happens outside Python, so its one function
is wrapped too, and what it leaves half way is made by cutting the file.
"""

import builtins
import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
AUDITED = {"os.rename": "rename", "os.remove": "unlink", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}

Act = Callable[[int, str, str], None]
"""Called with the number of the event from 0, its kind and its path; may end the process or raise OSError."""


class FileEvents:
    """Installed at once. kinds: those that are told of; None: all."""

    def __init__(self, root: Path, act: Act, kinds: frozenset[str] | None = None):
        self.root, self.act, self.kinds = os.fspath(root), act, kinds
        self.count = 0
        self.inside = threading.local()
        sys.addaudithook(self._audited)
        self._wrap_descriptors()
        self._wrap_files()
        self._wrap_tensors()

    def tell(self, kind: str, path: Any) -> None:
        """One more event, unless it lies elsewhere, or what is done at an event made it."""
        if (
            getattr(self.inside, "busy", False)
            or not self._mine(path)
            or not (self.kinds is None or kind in self.kinds)
        ):
            return
        self.inside.busy = True
        try:
            number, self.count = self.count, self.count + 1
            self.act(number, kind, os.path.relpath(os.fspath(path), self.root))
        finally:
            self.inside.busy = False

    def _mine(self, path: Any) -> bool:
        try:
            return os.path.abspath(os.fsdecode(path)).startswith(self.root)
        except (TypeError, ValueError):
            return False

    def _audited(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            if isinstance(args[2], int) and args[2] & WRITES:
                self.tell("open", args[0])
        elif event in AUDITED and not (event == "os.mkdir" and os.path.isdir(args[0])):  # nothing is made there
            self.tell(AUDITED[event], args[0])

    def _wrap_descriptors(self) -> None:
        real_sync, real_write = os.fsync, os.write

        def fsync(descriptor: Any) -> None:
            self.tell("fsync", _place(descriptor))
            real_sync(descriptor)

        def write(descriptor: int, data: Any) -> int:
            return self._in_halves(lambda part: real_write(descriptor, part), data, _place(descriptor))

        os.fsync, os.write = fsync, write

    def _in_halves(self, write: Callable[[Any], int], data: Any, path: Any, flush: Any = lambda: None) -> int:
        half = len(data) // 2
        written = write(data[:half]) if half else 0
        flush()
        self.tell("write", path)
        return written + write(data[half:])

    def _wrap_files(self) -> None:
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = real(file, mode, *args, **kwargs)
            place = _place(file) if isinstance(file, int) else file
            writes = any(letter in mode for letter in "wax+") and self._mine(place)
            return _Written(stream, self, place) if writes else stream

        io.open = builtins.open = opened

    def _wrap_tensors(self) -> None:
        import safetensors.torch as library

        real = library.serialize_file

        def serialize_file(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
            self.tell("tensors, before", filename)
            real(tensors, filename, *args, **kwargs)
            content = Path(filename).read_bytes()
            busy, self.inside.busy = getattr(self.inside, "busy", False), True
            os.truncate(filename, len(content) // 2)
            self.inside.busy = busy
            self.tell("tensors, half", filename)
            self.inside.busy = True
            Path(filename).write_bytes(content)
            self.inside.busy = busy
            self.tell("tensors, after", filename)

        library.serialize_file = serialize_file


class _Written:
    """A file whose writes are told of when half of their bytes are in it."""

    def __init__(self, stream: Any, events: FileEvents, path: Any):
        self._stream, self._events, self._path = stream, events, path

    def write(self, data: Any) -> int:
        data = data if isinstance(data, str) else bytes(data)
        return self._events._in_halves(self._stream.write, data, self._path, self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "_Written":
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._stream)


def _place(descriptor: Any) -> str:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""
