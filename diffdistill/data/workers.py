"""Several processes that decode images for this one, each asked by a thread of its own."""

import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffdistill.data.decoder import Decoded, Place, Written, decode_all, heard, request, send
from diffdistill.data.pixels import Lost, decode
from diffdistill.data.source import Entry
from diffdistill.errors import DataError
from diffdistill.machine import neighbours, own_cores

MOST = 16  # processes that decode, unless more are asked for: the one that asks has to take what they give
PATIENCE = 1.0  # seconds of decoding after which others are started for it
PART = 1 << 23  # bytes of pixels that are asked for at a time, about
IMAGES = 64  # and images at most
FIRST = 8  # images at a time before workers are started
START = "import sys; sys.path.insert(0, sys.argv[1]); from diffdistill.data.decoder import main; main()"

Answer = TypeVar("Answer")


def usual_workers() -> int:
    """As many as there are cores for this process, which it shares with those that a launcher started beside it."""
    return max(1, min(MOST, own_cores() // neighbours()))


class Workers:
    """So many processes; `close` ends them, and so does the end of this one."""

    def __init__(self, count: int):
        self.count = count
        self._threads = ThreadPoolExecutor(count, "decoding")
        self._mine = threading.local()
        started: list[subprocess.Popen[bytes]] = []
        self._started = started
        self._finish = weakref.finalize(self, _end, self._threads, started)

    def close(self) -> None:
        """End the processes, and wait for the threads that asked them."""
        self._finish()
        self._threads.shutdown()

    def submit(self, entries: Sequence[Entry], image_size: int | None) -> "Future[Decoded]":
        """Begin to decode some images."""
        return self._threads.submit(self._decoded, list(entries), image_size)

    def write(self, entries: Sequence[Entry], image_size: int | None, to: Place) -> "Future[Written]":
        """Begin to decode some images and to write them, see `decoder.write`."""
        return self._threads.submit(self._written, list(entries), image_size, to)

    def _decoded(self, entries: list[Entry], image_size: int | None) -> Decoded:
        said, images = self._ask(entries, image_size, None)
        return Decoded(images, said["error"], Lost(**said["lost"]))

    def _written(self, entries: list[Entry], image_size: int | None, to: Place) -> Written:
        said, _ = self._ask(entries, image_size, to)
        return Written(**said | {"lost": Lost(**said["lost"])})

    def _ask(
        self, entries: list[Entry], image_size: int | None, to: Place | None
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The answer of this thread's process, and the pixels that come with it."""
        if not hasattr(self._mine, "process"):
            self._mine.process = _start()
            self._started.append(self._mine.process)
        process = self._mine.process
        said: dict[str, Any] | None = None
        images: list[np.ndarray] = []
        try:
            send(process.stdin, *request(entries, image_size, to))
            said = heard(process.stdout)
            images = [_pixels(process.stdout, shape) for shape in (said or {}).get("shapes", ())]
        except (OSError, ValueError, EOFError):
            said = None
        if said is None:
            raise DataError(
                f"the process that decodes images has ended ({process.poll()}) at one from {entries[0][0]} to "
                f"{entries[-1][0]}: look at these, and whether there is memory enough; fewer data.workers take less"
            )
        return said, images


def _start() -> "subprocess.Popen[bytes]":
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", START, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **alone},
    )


def _pixels(stream: Any, shape: Sequence[int]) -> np.ndarray:
    image = np.empty(shape, np.uint8)
    view = image.reshape(-1).data
    done = 0
    while done < len(view):
        got = stream.readinto(view[done:])
        if not got:
            raise EOFError
        done += got
    return image


def _end(threads: ThreadPoolExecutor, started: "list[subprocess.Popen[bytes]]") -> None:
    """Joins no thread: the collector of garbage may call this anywhere, in a thread too that holds the locks of all
    threads because it is just starting.
    """
    threads.shutdown(wait=False, cancel_futures=True)
    for process in started:
        with suppress(OSError):
            process.kill()
    for process in started:
        process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError, RuntimeError):  # a thread that is reading ends by itself
                stream.close()  # type: ignore[union-attr]


def in_order(
    entries: Iterable[Entry], image_size: int | None, lost: Lost, workers: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """`(name, image (H, W, C))` of all entries, in their order; what is lost of them is noted. workers: see `piped`.

    Raises DataError at the first image that cannot be read.
    """
    waiting = iter(entries)
    for name, encoded in waiting:  # the first, which says how large they are
        image = decode(encoded, name, image_size, lost.note)
        size = part_size(image.nbytes)
        yield name, image
        break

    def here(part: list[Entry], _: int) -> Decoded:
        return decode_all(part, image_size)

    def there(pool: Workers, part: list[Entry], _: int) -> "Future[Decoded]":
        return pool.submit(part, image_size)

    for part, decoded in piped(waiting, size, here, there, workers):
        lost.add(decoded.lost)
        for (name, _), image in zip(part, decoded.images, strict=False):
            yield name, image
        if decoded.error is not None:
            raise DataError(decoded.error)


def part_size(row: int) -> int:
    """How many images, of so many bytes of pixels, are asked for at a time."""
    return max(1, min(IMAGES, PART // row))


def piped(
    entries: Iterable[Entry],
    size: int,
    here: Callable[[list[Entry], int], Answer],
    there: "Callable[[Workers, list[Entry], int], Future[Answer]]",
    workers: int | None,
) -> Iterator[tuple[list[Entry], Answer]]:
    """Parts of entries and what is answered to them, in their order.

    here, there: how a part, and the number of its first entry, is answered by this process, and by workers. Those are
    started where there is more to do than a second's work. workers: how many; None: `usual_workers`, unless there is
    but one core, which this process has; 0: none.
    """
    waiting, count, number = iter(entries), usual_workers() if workers is None else workers, 0
    began = time.monotonic()
    while not workers and (count < 2 or time.monotonic() - began < PATIENCE):
        part = list(islice(waiting, min(size, FIRST)))
        if not part:
            return
        yield part, here(part, number)
        number += len(part)
    pool = Workers(count)
    asked: deque[tuple[list[Entry], Future[Answer]]] = deque()
    try:
        while part := list(islice(waiting, size)):
            asked.append((part, there(pool, part, number)))
            number += len(part)
            if len(asked) > 2 * count:
                done, future = asked.popleft()
                yield done, future.result()
        while asked:
            done, future = asked.popleft()
            yield done, future.result()
    finally:
        pool.close()
