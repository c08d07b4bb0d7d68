"""Several processes of this one, forked, that find each other as torchrun's do: their answers come back as tensors."""

import contextlib
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffdistill import processes

LIMIT = 120.0


def free_port():
    """One below those that the system gives to whoever asks for any, each of several test processes with its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10
    while True:
        port = 21_000 + 1_000 * worker + secrets.randbelow(1_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def placed(rank, size, port):
    """The environment of one process of torchrun."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def start(function, size, folder):
    """Fork `size` processes that call `function(rank)`; their pids. What they say is in `RANK.log`, what they return,
    tensors by name or an exit code, in `RANK.safetensors` or the code."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    port = free_port()
    return [_fork(function, rank, size, port, folder) for rank in range(size)]


def _fork(function, rank, size, port, folder):
    if pid := os.fork():
        return pid
    code = 99
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        descriptor = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        os.environ.update(placed(rank, size, port))
        answer = function(rank)
        code = answer if isinstance(answer, int) else 0
        if isinstance(answer, dict):
            tensors = {name: value.detach().clone().contiguous() for name, value in answer.items()}
            save_file(tensors, folder / f"{rank}.safetensors")
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pids, limit=LIMIT):
    """The exit codes of processes, minus the signal that killed one; those that take too long are killed."""
    codes, end = {}, time.monotonic() + limit
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
        if time.monotonic() > end:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def pair(function, folder: Path):
    """The same of two processes, of which this one is the first: what it runs is seen by whoever watches it."""
    folder.mkdir(parents=True, exist_ok=True)
    port, before, waits = free_port(), dict(os.environ), (processes.WAIT, processes.MEET)
    other = _fork(function, 1, 2, port, folder)
    os.environ.update(placed(0, 2, port))
    processes.WAIT = processes.MEET = timedelta(seconds=LIMIT)
    try:
        mine = function(0)
    finally:
        processes._leave()
        processes.WAIT, processes.MEET = waits
        os.environ.clear()
        os.environ.update(before)
        codes = ended([other], 20.0)
        _forget_place()
    assert codes == [0], (folder / "1.log").read_text()
    return [mine, load_file(folder / "1.safetensors")]


def _forget_place():
    """What torch remembers of sharded tensors names this process's place in a group, and forked ones inherit it."""
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()


def ranks(function, size, folder: Path, limit=LIMIT):
    """What `function(rank)` returns in each of `size` processes, all of which must end well."""
    codes = ended(start(function, size, folder), limit)
    said = "".join((folder / f"{rank}.log").read_text() for rank in range(size))
    assert codes == [0] * size, f"{codes}\n{said}"
    files = [folder / f"{rank}.safetensors" for rank in range(size)]
    return [load_file(file) if file.exists() else {} for file in files]


def alike(one, other, tolerance=0.0):
    """Asserts that tensors by name are the same, to a part of each tensor's largest value."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        bound = tolerance * max(float(value.abs().max()), 1e-2) if value.is_floating_point() else 0
        worst = float((value.double() - other[name].double()).abs().max()) if value.numel() else 0.0
        assert worst <= bound, f"{name} differs by {worst:.2e}, allowed {bound:.2e}"
        assert torch.isfinite(value).all() if value.is_floating_point() else True
