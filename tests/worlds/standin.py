"""A stand-in for an accelerator: tensors whose device is `standin:0` and whose numbers lie on the CPU.

torch knows the device by name alone. A tensor of it is a `StandIn`, which holds a tensor of the CPU (`raw`); every
operation arrives at `_answer`, which runs it on the CPU and does what CUDA would do about it:

- tensors of both devices in one operation raise (but for copies, indices, and numbers of the CPU in arithmetic);
- a CPU generator for numbers of the device raises;
- `.numpy()` raises;
- what makes the host wait is counted in `WAITS`, with the line of the package that asked: a number that is read
  (`.item()`, `float(t)`, `bool(t)`, `.cpu()`, a mask as an index ...), and a tensor that is sent with `non_blocking`
  off, for which CUDA waits until all that was asked before is done;
- float64 raises where `in_use(float64=False)` says so, as on Apple's GPUs.

Random numbers are those of the CPU's generator, so what is computed is what the CPU computes, to the last bit.

    with in_use() as device:
        model.to(device)

It knows no memory, no streams, no fused kernels. Autocast casts what it casts on CUDA, of the operations that networks
here are made of.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

PACKAGE = str(Path(__file__).resolve().parents[2] / "diffdistill")
READS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip
COPIES = {"_to_copy", "copy_", "_copy_from", "to"}  # `to` as it is while nothing is differentiated
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
JOINED = {"cat", "stack"}  # no arithmetic: they take no numbers of the CPU
MADE_OF_DATA = {torch.tensor, torch.as_tensor, torch.asarray}


@dataclass
class Waits:
    """How often the host had to wait: `read` and `sent` by the line of the package that made it; see the head."""

    read: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return sum(self.read.values()) + sum(self.sent.values())

    def clear(self) -> None:
        self.read.clear()
        self.sent.clear()


WAITS = Waits()
_float64 = [True]


def place() -> str:
    """`matching/step.py:12`, the innermost line of the package on the stack; of anything where none is."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename.removeprefix(PACKAGE)[1:]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        """The generator is the CPU's, whose state whoever sets this one has set too."""

    def synchronize(self, device: Any = None) -> None:
        """All is done already."""


class StandIn(torch.Tensor):
    """A tensor of the device; `raw`: its numbers."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "StandIn":
        if torch.is_inference_mode_enabled():  # views of weights are no tensors of inference
            with torch.inference_mode(False):
                return StandIn(raw)
        if raw.dtype == torch.float64 and not _float64[0]:
            raise TypeError(f"standin has no float64; {place()} asks for it")
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.size(), device=device(), **layout)
        made.raw = raw
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StandIn({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _answer(func, args, kwargs or {})

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert standin:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def untyped_storage(self) -> Any:
        """Of the numbers: who writes files looks for tensors that share one."""
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        WAITS.read[place()] += 1
        return self.raw.tolist()

    def new_tensor(
        self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> torch.Tensor:
        made = torch.tensor(_raw(data), dtype=dtype or self.dtype).to(device or self.device)
        return made.requires_grad_(requires_grad)

    @property
    def data(self) -> Any:
        return torch._C.TensorBase.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Any) -> None:
        self.raw = value.raw
        torch._C.TensorBase.data.__set__(self, value)  # type: ignore[attr-defined]


@cache
def device() -> torch.device:
    """The device, of which torch is told at first use, for good."""
    _setup_privateuseone_for_python_backend("standin", backend_module=Backend())
    _autocast()
    return torch.device("standin:0")


# CUDA's lists (docs.pytorch.org, "Autocast Op Reference"): to half precision, to float32, to the widest.
HALF = ("conv1d", "conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
SINGLE = (
    "layer_norm", "group_norm", "softmax.int", "log_softmax.int", "exp", "log", "pow.Tensor_Scalar", "sum", "mean",
    "norm.Scalar", "softplus", "mse_loss", "cumsum", "sum.dim_IntList", "rsqrt",
)  # fmt: skip
_LIBRARIES: list[Any] = []


def _autocast() -> None:
    """Tell torch what autocast does on the device: it has nothing for a device that it does not know."""
    key = "AutocastPrivateUse1"
    rest, ours = torch.library.Library("_", "IMPL", key), torch.library.Library("aten", "IMPL", key)
    rest.fallback(torch.library.fallthrough_kernel)
    for name in (*HALF, *SINGLE):
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        ours.impl(name, _cast(operation, None if name in HALF else torch.float32))
    _LIBRARIES.extend([rest, ours])  # which end with their last reference


def _cast(operation: Any, to: torch.dtype | None) -> Any:
    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16):
            return value.to(dtype)
        return type(value)([cast(one, dtype) for one in value]) if isinstance(value, list | tuple) else value

    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("standin") if to is None else to
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*cast(args, dtype), **kwargs)

    return call


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, StandIn) else value


def _of_ours(where: Any) -> bool:
    return where is not None and torch.device(where).type == "standin"


def _answer(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU's tensors; its results are the device's where its arguments are, or `device` says."""
    name = func.overloadpacket.__name__
    where = kwargs.get("device", next((value for value in args if isinstance(value, torch.device)), None))
    ours: list[Any] = []
    cpu: list[torch.Tensor] = []
    raw_args, raw_kwargs = _opened(args, ours, cpu), _opened(kwargs, ours, cpu)
    there = bool(ours) if where is None else _of_ours(where)
    _check(func, name, args, kwargs, ours, cpu)
    _count(name, args, kwargs, ours, there)
    if kwargs.get("device") is not None:
        raw_kwargs["device"] = torch.device("cpu")
    out = func(*raw_args, **raw_kwargs)
    if name[-1] == "_" and name[-2] != "_" and args and isinstance(args[0], torch.Tensor):
        if torch.Tag.inplace_view in func.tags and isinstance(args[0], StandIn):
            with no_dispatch():
                func(*args, **kwargs)  # `unsqueeze_`: the tensor that is known by name has another shape too
        return args[0]  # in place
    if isinstance(kwargs.get("out"), StandIn):
        return kwargs["out"]
    return _placed(out) if there else out


def _opened(value: Any, ours: list[Any], cpu: list[torch.Tensor]) -> Any:
    """The value with the numbers of the device's tensors in their place; both kinds of tensors are noted."""
    kind = type(value)
    if kind is StandIn:
        ours.append(value)
        return value.raw
    if kind is torch.device and _of_ours(value):
        return torch.device("cpu")
    if isinstance(value, torch.Tensor):
        cpu.append(value)
    elif kind is list or kind is tuple:
        return kind([_opened(one, ours, cpu) for one in value])
    elif kind is dict:
        return {key: _opened(one, ours, cpu) for key, one in value.items()}
    return value


def _placed(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return StandIn(value)
    return type(value)([_placed(one) for one in value]) if isinstance(value, list | tuple) else value


def _check(func: Any, name: str, args: Any, kwargs: Any, ours: list[Any], cpu: list[torch.Tensor]) -> None:
    if ours and cpu and name not in COPIES:
        mixed = [t for t in cpu if t.dim() > 0 or name in JOINED]
        if name in INDEXED and type(args[0]) is StandIn:
            mixed = [t for t in mixed if not any(t is index for index in args[1])]
        if mixed:
            shapes = [tuple(t.shape) for t in mixed]
            raise RuntimeError(f"{func} at {place()}: Expected all tensors on standin:0, but {shapes} are on cpu")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu" and (ours or _of_ours(kwargs.get("device"))):
        raise RuntimeError(f"{func} at {place()}: Expected a 'standin' device type for generator but found 'cpu'")


def _count(name: str, args: Any, kwargs: Any, ours: list[Any], there: bool) -> None:
    if name in COPIES:
        source = args[1] if name == "copy_" else args[0]
        target_is_ours = isinstance(args[0], StandIn) if name == "copy_" else there
        if isinstance(source, StandIn) and not target_is_ours:
            WAITS.read[place()] += 1
        elif target_is_ours and not isinstance(source, StandIn) and not _free(name, args, kwargs):
            WAITS.sent[place()] += 1
    elif ours and name in READS:
        WAITS.read[place()] += 1
    elif name in INDEXED and ours:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(index.dtype == torch.bool and isinstance(index, StandIn) for index in indices):
            WAITS.read[place()] += 1
        elif not all(isinstance(index, StandIn) for index in indices):
            WAITS.sent[place()] += 1


def _free(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the host goes on at once; a number fills the device's tensor without one."""
    if name == "copy_":
        return bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]) or args[1].dim() == 0)
    return bool(kwargs.get("non_blocking")) or (name == "to" and any(value is True for value in args[2:4]))


class _Operations(TorchDispatchMode):
    """What has no tensor of the device among its arguments: `torch.zeros(2, device="standin")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _of_ours(kwargs.get("device")) or StandIn in types:
            return _answer(func, args, kwargs)
        return func(*args, **kwargs)


class _Data(TorchFunctionMode):
    """What is made of numbers of Python, which torch copies to the device behind our back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MADE_OF_DATA and (_of_ours(kwargs.get("device")) or _of_ours(torch.get_default_device())):
            where = kwargs.pop("device")
            if isinstance(args[0], StandIn):
                return args[0].to(where, kwargs.get("dtype"))
            return func(*args, **kwargs).to(where)
        return func(*args, **kwargs)


@contextmanager
def in_use(float64: bool = True) -> Iterator[torch.device]:
    """The device, with no wait counted yet."""
    there = device()
    WAITS.clear()
    before, _float64[0] = _float64[0], float64
    try:
        with _Data(), _Operations():
            yield there
    finally:
        _float64[0] = before
