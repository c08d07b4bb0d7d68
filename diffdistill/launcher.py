"""What torchrun, accelerate launch or srun says to the processes that it starts, and how these find each other."""

import os
from datetime import timedelta

from diffdistill.errors import ConfigError
from diffdistill.files import reason_of

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}  # who sums the tensors of an accelerator


def launched() -> tuple[int, int]:
    """`(rank, size)` as the launcher says; (0, 1) without one."""
    try:
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (number, count) if 0 <= number < count else (0, 1)


def speaks() -> bool:
    """Whether an error that every process of this machine meets is this one's to tell."""
    return launched()[1] == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def join(number: int, count: int, meet: timedelta, wait: timedelta) -> None:
    """Make the group of all, by GPUs where there are some. meet, wait: for all to come, and for a call's answer.

    ConfigError where the launcher's words are not complete, or there are more processes than GPUs.
    """
    import torch
    from torch.distributed.distributed_c10d import _set_pg_timeout

    from diffdistill.devices import accelerator

    backend, local = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
    if (kind := accelerator()) is not None:
        here, there = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), torch.accelerator.device_count()
        if here > there:
            error = ConfigError(
                f"{here} processes were started on a machine with {there} GPUs; start one a GPU, or set "
                f"ACCELERATE_USE_CPU=1 to use the cores"
            )
            error.told = not speaks()
            raise error
        torch.accelerator.set_device_index(local)
        backend = f"cpu:gloo,{kind}:{BACKENDS.get(kind, 'gloo')}"
    try:
        store, number, count = next(torch.distributed.rendezvous("env://", number, count, timeout=meet))
        # One that dies while all connect would else be waited for as long as a call is.
        torch.distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=meet)
        _set_pg_timeout(wait)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"process {number} of {count} does not find the others ({reason_of(error):.160}); start all by "
            f"torchrun or accelerate launch, or set MASTER_ADDR and MASTER_PORT"
        ) from error
