"""The user's error behind any exception: one sentence, and the exit code of its class.

Whatever a user or a disk can do has a sentence here or where it arises; what is left is a bug of ours, and says so.
"""

import errno
import os
import re
from collections.abc import Iterator

from diffdistill.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiffDistillError,
    DiskError,
    Interrupted,
)
from diffdistill.registry import plugin_file

NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP}
TOO_MANY = {errno.EMFILE, errno.ENFILE}
OFFLINE = {
    getattr(errno, name)
    for name in ("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "ETIMEDOUT")
    if hasattr(errno, name)
}
# The form in which Rust (safetensors, the Hub's client), Arrow and others hand on the number of a system's error.
NUMBERED = re.compile(r"(?:\bos error |\[Errno |\berrno:? )(\d+)")
# torch, on a CPU, on MPS; NumPy and Python raise MemoryError, CUDA an error of its own name.
NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Invalid buffer size|not enough memory", re.IGNORECASE)


def explained(error: BaseException) -> DiffDistillError:
    """What happened, and what to do; `error` itself where it says so already."""
    if isinstance(error, DiffDistillError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(str(error) or "interrupted")
    text = first_line(error)
    if is_out_of_memory(error):
        return ConfigError(
            f"memory does not hold what was asked for ({text}); lower the batch size, or the number or size of images"
        )
    if (place := plugin_place(error)) is not None:
        return ConfigError(f"{place} fails ({type(error).__name__}: {text}); mend the file, or leave it out")
    if (of_system := system_error(error)) is not None:
        return of_system
    if isinstance(error, ValueError) and "embedded null" in text:
        return ConfigError("a path holds a NUL character, which no path has; write it without")
    if type(error).__name__ == "SafetensorError":
        return CheckpointError(f"a weights file is damaged ({text}); make or fetch it again")
    return DiffDistillError(f"unexpected {type(error).__name__}: {text} (--debug shows the traceback)")


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def plugin_place(error: BaseException) -> str | None:
    """`'FILE.py' line N (in NAME)` of the last of the user's own files that an exception came through; else None."""
    place, trace = None, error.__traceback__
    while trace is not None:
        if (file := plugin_file(trace.tb_frame.f_globals.get("__name__"))) is not None:
            place = f"'{file}' line {trace.tb_lineno} (in {trace.tb_frame.f_code.co_name})"
        trace = trace.tb_next
    return place


def system_error(error: BaseException) -> DiffDistillError | None:
    """The sentence about an error of disk or network, by the system's number for it, however it was wrapped."""
    for known in (error, *_behind(error)):
        number = number_of(known)
        if number is None and not (known is error and isinstance(error, OSError)):
            continue
        name = getattr(known, "filename", None)
        place = f"'{name!s:.200}': {getattr(known, 'strerror', None)}" if name else first_line(known)
        return _by_number(number, place, known)
    return None


def number_of(error: BaseException) -> int | None:
    """The system's number of an error; None where there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = NUMBERED.search(str(error))
    if found is None and "No space left on device" in str(error):
        return errno.ENOSPC
    return None if found is None else int(found[1])


def _behind(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError):
            yield cause
        cause = cause.__cause__ or cause.__context__


def _by_number(number: int | None, place: str, error: BaseException) -> DiffDistillError:
    if number in NO_ROOM:
        return DiskError(f"no room left on the disk ({place}); free space or choose another folder")
    if number in NO_PERMISSION:
        return DiskError(f"no permission ({place}); choose another folder or change its rights")
    if number in NO_PATH:
        return ConfigError(f"there can be no such path ({place}); name another")
    if number in TOO_MANY:
        return DiskError(f"too many files are open ({place}); raise the limit, such as ulimit -n 4096")
    if number in OFFLINE or type(error).__name__ in ("gaierror", "URLError", "HTTPError", "TimeoutError"):
        return DataError(f"the network does not answer ({place}); check it, or give a folder of this machine")
    if number is not None and place == "no message":
        place = os.strerror(number)
    return DiskError(f"a file cannot be read or written ({place}); check its path, its folder and the disk")


def without_package(begins: str, error: Exception, extra: str, otherwise: str) -> ConfigError:
    """For a package that is not installed, or not whole. extra: of ours, that brings it.

    >>> print(without_package("x is torchao's", ImportError("no torchao"), "quant", "take y"))
    x is torchao's, which cannot be imported (ImportError: no torchao); pip install 'diffdistill[quant]', or take y
    """
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
    return ConfigError(
        f"{begins}, which cannot be imported ({reason}); pip install 'diffdistill[{extra}]', or {otherwise}"
    )
