"""The closed table of names a file of weights may use, and the plain data each makes.

Tensors and arrays become tensors; an object of a class becomes a `Record`, its class name and its attributes; the
source code that EDM's files carry is text that is never read.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffdistill.pickle_reader.machine import Fillable, Maker, PickleReader, Refused

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
NUMBERS = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.uint8,
}  # fmt: skip
# of torch.save before its zip files; what comes before the numbers takes a few hundred bytes
LEGACY_MAGIC, LEGACY_VERSION, LEGACY_HEAD = 0x1950A86A20F9469CFC6C, 1001, 4096


@dataclass(eq=False)
class Record(Fillable):
    """An object of the file, as data: the name of its class and its attributes."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)

    def fill(self, state: Any) -> None:
        if not isinstance(state, dict) or self.attributes:
            raise ValueError
        self.attributes = state


@dataclass(eq=False)
class Storage:
    """One-dimensional numbers that tensors look at: `(n,)`."""

    values: Tensor


@dataclass(eq=False)
class NumberType(Fillable):
    """A numpy dtype, by its two letters."""

    code: str

    def fill(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise Refused("the pickle holds an array that is not of little-endian numbers")


@dataclass(eq=False)
class Array(Fillable):
    """A numpy array, which a pickle makes empty and fills later."""

    tensor: Tensor | None = None

    def fill(self, state: Any) -> None:
        _, shape, kind, column_major, data = state
        self.tensor = _shaped(data, kind, shape, bool(column_major))


def _shaped(data: Any, kind: Any, shape: Any, column_major: bool) -> Tensor:
    if not isinstance(kind, NumberType):
        raise ValueError
    counts, flat = sizes(shape), numbers(data, NUMBERS[kind.code])
    if math.prod(counts) != len(flat):
        raise ValueError
    backwards = range(len(counts))[::-1]
    return flat.reshape(counts[::-1]).permute(*backwards) if column_major else flat.reshape(counts)


def numbers(data: Any, dtype: torch.dtype, offset: int = 0, count: int = -1) -> Tensor:
    """`(n,)` numbers in `data`, which must be bytes; a view, for a file may ask for the same bytes a million times."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError
    if count == 0 or offset == len(data):
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # and it is never written to
        return torch.frombuffer(data, dtype=dtype, offset=offset, count=count)


def sizes(value: Any) -> tuple[int, ...]:
    """A shape, a stride: whole numbers from 0 to 2^63."""
    if not isinstance(value, tuple) or len(value) > 64:
        raise ValueError
    if not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError
    return value


# ---- makers. They copy nothing of the file's, so that no small file becomes large data.


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a view of a storage, which must hold every number the tensor shows.

    A tensor that shows one number many times (stride 0) could be of any size; weights have none.
    """
    if not isinstance(storage, Storage):
        raise ValueError
    size, stride, (offset,) = sizes(size), sizes(stride), sizes((offset,))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last >= len(storage.values) or count > len(storage.values)):
        raise ValueError
    return torch.as_strided(storage.values, size, stride, offset) if count else storage.values.new_empty(size)


def rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError
    return data


def persistent_object(meta: Any) -> Record:
    """EDM's record of an object: its class name and attributes are taken, its source code is left alone."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise ValueError
    record = Record(meta["class_name"])
    record.fill(meta["state"])
    return record


def legacy_storage(data: Any) -> Storage:
    """`torch.storage._load_from_bytes`: one storage as `torch.save` wrote it before its zip files.

    Five pickles (magic number, version, system, the storage's id, its key), then the count and the numbers.
    """
    if not isinstance(data, bytes):
        raise ValueError
    head = io.BytesIO(data[:LEGACY_HEAD])
    if (PickleReader({}).read(head), PickleReader({}).read(head)) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise Refused("the pickle holds a tensor in an unknown format")
    PickleReader({}).read(head)
    kind, _, count = PickleReader(STORAGE_NAMES, storage_id).read(head)
    PickleReader({}).read(head)
    stored = int.from_bytes(head.read(8), "little")
    if stored != count or head.tell() + count * kind.itemsize != len(data):
        raise ValueError
    return Storage(numbers(data, kind, head.tell(), count))


def storage_id(value: Any) -> tuple[torch.dtype, str, int]:
    """`("storage", type, key, device, count[, view])` -> dtype, key, count."""
    tag, kind, key, _, count, *view = value
    if tag != "storage" or any(v is not None for v in view) or not isinstance(key, str):
        raise Refused("the pickle refers to data outside of it that is no storage of numbers")
    return kind.make(), key, sizes((count,))[0]


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Array:
    """How protocol 5 writes an array whose numbers lie in a row; of order "K" in rows, its axes then exchanged."""
    array = _shaped(data, kind, shape, order == "F")
    if order != "K":
        return Array(array)
    if sorted(axes) != list(range(array.dim())):
        raise Refused(f"the pickle holds an array of {array.dim()} axes in the order {axes!r:.40}")
    return Array(array.permute(*axes))


def _number_type(code: Any, *_: Any) -> NumberType:
    if code not in NUMBERS:
        raise Refused("the pickle holds an array of something other than numbers")
    return NumberType(code)


def _scalar(kind: Any, data: Any) -> float | int:
    if not isinstance(kind, NumberType):
        raise ValueError
    (value,) = numbers(data, NUMBERS[kind.code]).tolist()
    return value


def _encoded(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`: how protocol 2, which torch.save uses, writes the few bytes of a numpy number."""
    if not isinstance(text, str) or encoding != "latin1" or len(text) > 16:
        raise ValueError
    return text.encode("latin-1")


def _dtype(dtype: torch.dtype) -> Callable[[], torch.dtype]:
    return lambda: dtype


STORAGE_NAMES: Mapping[tuple[str, str], Maker] = {("torch", name): _dtype(dtype) for name, dtype in STORAGES.items()}
NAMES: Mapping[tuple[str, str], Maker] = {
    **STORAGE_NAMES,
    ("collections", "OrderedDict"): lambda: {},
    ("dnnlib.util", "EasyDict"): lambda: {},
    # Sets of old protocols; no set of a file is looked at, so it may stay a list.
    **{(module, "set"): lambda items: items for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): _encoded,
    ("torch", "Size"): sizes,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): legacy_storage,
    ("torch.nn.modules.container", "ModuleDict"): lambda: Record("ModuleDict"),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("numpy", "ndarray"): lambda *_: Array(),
    ("numpy", "dtype"): _number_type,
}
