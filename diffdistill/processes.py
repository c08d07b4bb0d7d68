"""Several processes as one: torchrun's, each with some rows of every batch, all taking the same step.

How many there are is no setting of a run. Every process seeds itself alike and draws the randomness of the whole
batch, then computes the rows that are its own; gradients are summed, means are taken over the rows of all. The leader
alone owns files and says things. With one process, every function here hands back what it was given.

    with together():                          # what torchrun, accelerate launch or srun started beside this one
        mine = rows(len(noise))
        loss = f(noise[mine]).sum() / len(noise)
        loss.backward()
        sum_gradients(network.parameters())   # now that of the whole batch, everywhere

No torch is imported before it is needed, and no pickle is sent: words go as JSON.
"""

import atexit
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from diffdistill.errors import ConfigError, DiffDistillError
from diffdistill.failures import Failures, Gone, kind_of, of_kind
from diffdistill.files import reason_of
from diffdistill.launcher import join
from diffdistill.launcher import launched as launched
from diffdistill.launcher import speaks as speaks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Value = TypeVar("Value")
Item = TypeVar("Item")

MEET = timedelta(minutes=10)  # until all have started
WAIT = timedelta(hours=24)  # for the leader, who may measure for hours; one that died is noticed at once
BUCKET = 4_000_000  # gradients summed in one call: 16 MB
NOTHING, ANSWER, ERROR, CALLED = 0, 1, 2, 3  # what follows a leader's work, or is wanted of all in its midst

_alone = 0
_within = 0
_ours = False  # whether the group was made here
_whole = True  # whether nothing failed within
_failures: Failures | None = None
_control: Any = None  # the group that words go by; None: that of everything
_services: dict[str, Callable[..., Any]] = {}  # what a leader at work may call all for


def _distributed() -> Any:
    from torch import distributed

    return distributed


def _joined() -> bool:
    """Whether there is a group; one that nobody has imported torch for is none, and asking imports nothing."""
    there = "torch.distributed" in sys.modules and _distributed().is_available()
    return there and bool(_distributed().is_initialized())


def size() -> int:
    """How many processes share the work: 1 within `alone`, and outside of `together` unless the caller joined them."""
    shared = not _alone and (_within or not _ours) and _joined()
    return int(_distributed().get_world_size()) if shared else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(_distributed().get_rank()) if _joined() else 0


def leader() -> bool:
    return rank() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that a launcher started with this one; all but the leader are silent within.

    They stay joined, idle, until they end or meet here again. A group that is there already is used and left.
    An error of one is that of all, told by the first to meet it. Raises ConfigError as `launcher.join` does.
    """
    global _control, _ours, _within, _whole
    if launched()[1] == 1 and not _joined():
        yield
        return
    from torch import distributed

    if not distributed.is_initialized():
        if _failures is not None:
            raise _gone("an error was caught, and the work taken up again")
        join(*launched(), MEET, WAIT)
        _ours = True
        atexit.register(_leave)
    elif distributed.get_backend() == "nccl" and _control is None:  # which carries nothing from a CPU
        _control = distributed.new_group(backend="gloo", timeout=WAIT)
    _within += 1
    with contextlib.nullcontext() if leader() else _silent():
        whole, _whole = _whole, False
        try:
            yield
            _whole = whole
        except BaseException as error:
            if _within == 1 and (raised := _settled(error)) is not error:
                raise raised from raised.__cause__
            raise
        finally:
            _within -= 1


def _settled(error: BaseException) -> BaseException:
    """What this process raises where one has failed; the others, unless they fail too, learn it as they would talk."""
    global _failures
    if _failures is None:
        from torch.distributed.distributed_c10d import _get_default_store

        _failures = Failures(_get_default_store(), rank(), int(_distributed().get_world_size()))
    raised, waited_for = _failures.settle(error)
    if waited_for:
        _part()
    return raised


def _part() -> None:
    """After an error, processes that still wait for this one are told by its end; NCCL's would be waited for."""
    if _ours and _joined() and (_whole or "nccl" not in _distributed().get_backend_config()):
        _distributed().destroy_process_group()


def _leave() -> None:
    global _failures, _ours
    _part()
    if _failures is not None:
        with contextlib.suppress(RuntimeError):
            _failures.wait()
    _failures, _ours = None, False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process does all of what it does itself."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def rows(count: int, of: int | None = None) -> slice:
    """The rows of a batch of `count` that are this process's, or those of process `of`: even parts, in order.

    >>> rows(10)
    slice(0, 10, None)
    """
    number, processes = (rank() if of is None else of), size()
    return slice(0, count) if processes == 1 else slice(count * number // processes, count * (number + 1) // processes)


def total(values: "Tensor") -> "Tensor":
    """The sum over all processes, a copy; `values` itself with one."""
    if size() == 1:
        return values
    values = values.clone()
    _call("all_reduce", values)
    return values


def gather(mine: "Tensor", count: int | None) -> "Tensor":
    """The rows of all, `(count, ...)`, without a graph; `mine`: those of this process, as `rows(count)` says.

    count: None where these rows are no part of a batch of all; they are handed back.
    """
    if count is None or size() == 1:
        return mine
    import torch

    mine = mine.detach().contiguous()
    shares = [rows(count, of=number) for number in range(size())]
    most_rows = max(share.stop - share.start for share in shares)
    padded = mine.new_zeros(most_rows, *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in shares]
    _call("all_gather", parts, padded)
    return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])


def mean(figures: dict[str, Any], mine: int, count: int | None) -> dict[str, Any]:
    """Means over the `count` rows of all from those over this process's own, which are `mine` many; as `gather`."""
    if count is None or size() == 1 or not figures:
        return figures
    import torch

    values = [torch.as_tensor(value).detach().float() for value in figures.values()]
    device = max((value.device for value in values), key=lambda one: one.type != "cpu")
    whole = total(mine / count * torch.stack([value.to(device) for value in values]))
    return dict(zip(figures, whole.unbind(), strict=True))


def sum_gradients(parameters: "Iterable[Parameter]") -> None:
    """Gradients summed over all processes, in float32, many in a call; every process has them for the same weights.

    Those of sharded weights (`sharding`) are left as they are: their sums are made within the backward pass.
    """
    if size() == 1:
        return
    import torch

    for bucket in _buckets([p.grad for p in parameters if p.grad is not None and not hasattr(p, "placements")]):
        flat = torch.cat([grad.reshape(-1).float() for grad in bucket])
        _call("all_reduce", flat)
        for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(tensors: "Sequence[Tensor]") -> "Iterator[list[Tensor]]":
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and held + tensor.numel() > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket


def most(word: int) -> int:
    """The highest number that any process gives."""
    if size() == 1:
        return word
    import torch

    highest = torch.tensor([word])
    _call("all_reduce", highest, op=_distributed().ReduceOp.MAX, group=_control)
    return int(highest)


def share(value: Value, source: int = 0) -> Value:
    """What process `source` gives, which JSON can hold, on all."""
    if size() == 1:
        return value
    import torch

    said = json.dumps(value, default=lambda number: number.tolist()).encode() if rank() == source else b""
    length = torch.tensor([len(said)])
    _call("broadcast", length, source, group=_control)
    heard = torch.zeros(int(length), dtype=torch.uint8)
    if said:
        heard = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    _call("broadcast", heard, source, group=_control)
    answer: Value = json.loads(heard.numpy().tobytes())
    return answer


def lead(act: Callable[[], Value]) -> Value:
    """What the leader's call returns, which JSON can hold, on all: they wait for it. Its error is that of all."""
    if size() == 1:
        return act()
    value: Any = None
    said: Any = None
    failed: DiffDistillError | None = None
    if leader():
        try:
            with alone():
                value = act()
        except DiffDistillError as error:
            failed = error
    while (follows := most(ERROR if failed else NOTHING if value is None else ANSWER)) == CALLED:
        said = share(None)
        _services[said[0]](*said[1:])
    if follows == ERROR:
        said = share([kind_of(failed), str(failed)] if failed else None)
        raise failed or together_told(of_kind(*said))
    return value if follows == NOTHING else share(value)


def serve(name: str, service: Callable[..., Any]) -> None:
    """What `call` does by this name; it must succeed on all, or fail on all."""
    _services[name] = service


def leading() -> bool:
    """Whether this process works for all within `lead`."""
    return bool(_alone) and leader() and _joined() and int(_distributed().get_world_size()) > 1


def call(name: str, *words: Any) -> Any:
    """What the service of that name returns here for words that JSON can hold: all make the call; within `lead` the
    leader alone, and the others, who wait, take part.
    """
    global _alone
    if not leading():
        return _services[name](*words)
    before, _alone = _alone, 0
    try:
        most(CALLED)
        share([name, *words])
        return _services[name](*words)
    finally:
        _alone = before


def agree(things: Mapping[str, Any]) -> None:
    """ConfigError, on all, that names what is not the same on all; things: by their names in that sentence."""
    if size() == 1:
        return
    import torch

    texts = [json.dumps([name, value], default=str) for name, value in things.items()]
    mine = torch.stack([torch.tensor(list(hashlib.sha256(text.encode()).digest())) for text in texts])
    everyone = [torch.empty_like(mine) for _ in range(size())]
    _call("all_gather", everyone, mine, group=_control)
    for number, theirs in enumerate(everyone):
        other = [name for name, same in zip(things, (theirs == everyone[0]).all(1).tolist(), strict=True) if not same]
        if other:
            raise together_told(
                ConfigError(
                    f"process {number} has other {', '.join(other)} than process 0; start all with one command, on "
                    f"the same files and with the same packages"
                )
            )


def together_told(error: DiffDistillError) -> DiffDistillError:
    """An error that every process raises: the leader tells it."""
    error.told = error.told or not leader()
    return error


def in_turn(function: "Callable[[Item], dict[str, Tensor]]", items: Iterable[Item]) -> "Iterator[dict[str, Tensor]]":
    """`function` of each item, in their order, on all: process r computes every `size`-th from the r-th on.

    All go through the same items; tensors come back on the CPU.
    """
    if size() == 1:
        yield from map(function, items)
        return
    waiting = iter(items)
    while True:
        round_ = [item for _, item in zip(range(size()), waiting, strict=False)]
        mine = function(round_[rank()]) if rank() < len(round_) else None
        for number in range(len(round_)):
            yield handed(mine if number == rank() else None, number)
        if len(round_) < size():
            return


def handed(mine: "dict[str, Tensor] | None", source: int) -> "dict[str, Tensor]":
    """The tensors of one process, on all, on the CPU; the others give None."""
    import torch

    tensors = {name: value.detach().cpu().contiguous() for name, value in (mine or {}).items()}
    about = share({n: [str(value.dtype).removeprefix("torch."), *value.shape] for n, value in tensors.items()}, source)
    for name, (dtype, *shape) in about.items():
        value = tensors[name] if mine is not None else torch.empty(shape, dtype=getattr(torch, dtype))
        _call("broadcast", value, source, group=_control)
        tensors[name] = value
    return tensors


def _call(collective: str, *values: Any, **settings: Any) -> None:
    """A call of torch.distributed that all processes make."""
    with talking(anything=True):
        getattr(_distributed(), collective)(*values, **settings)


@contextlib.contextmanager
def talking(anything: bool = False) -> Iterator[None]:
    """Within, where processes talk to each other and one has ended, the error is told; anything: whatever it says."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not (anything or re.search("gloo|nccl|connection", str(error), re.IGNORECASE)):
            raise
        raise _gone(reason_of(error)) from error


def _gone(reason: str) -> Gone:
    return Gone(
        f"another process of this run has ended, and says why itself if it could ({reason:.160}); mend that, start "
        f"all again, and a run goes on with resume_from_checkpoint=latest"
    )
