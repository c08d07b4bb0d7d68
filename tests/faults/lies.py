"""Files whose headers lie: safetensors, npz, zip, IDX and parquet, each made from a whole one by a seed."""

import json
import random
import struct
from typing import Any

NUMBERS: list[Any] = [
    0, 1, -1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 1e3, 1.5, None, "1", [], {}, True,
]  # fmt: skip
DTYPES = ["F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X", "", None, 1, "f32"]
LENGTHS = [0, 1, 2, 7, 8, 2**25, 10**8, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 1]


class Tensors:
    """A whole safetensors file, taken apart."""

    def __init__(self, data: bytes):
        self.data, self.length = data, struct.unpack("<Q", data[:8])[0]
        self.head: dict[str, Any] = json.loads(data[8 : 8 + self.length])
        self.body = data[8 + self.length :]
        self.names = [name for name in self.head if name != "__metadata__"]

    def pack(self, head: Any, body: bytes | None = None, length: int | None = None) -> bytes:
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        count = struct.pack("<Q", len(text) if length is None else length)
        return count + text + (self.body if body is None else body)

    def lie(self, random_: random.Random) -> bytes:
        """One lie: of a tensor's entry, of the header as a whole, or of its length."""
        kind = random_.randrange(3)
        if kind == 0:
            return self.pack(self._entry(random_))
        return self._header(random_) if kind == 1 else self._bytes(random_)

    def _entry(self, random_: random.Random) -> dict[str, Any]:
        head = json.loads(json.dumps(self.head))
        name, other = random_.choice(self.names), random_.choice(self.names)
        entry, kind = head[name], random_.randrange(9)
        start, end = entry["data_offsets"]
        step = random_.choice([-4, -1, 1, 4, 8, 4096])
        if kind == 0:
            entry["data_offsets"] = [random_.choice(NUMBERS), random_.choice(NUMBERS)]
        elif kind == 1:
            entry["shape"] = [random_.choice(NUMBERS) for _ in range(random_.randrange(5))]
        elif kind == 2:
            entry["dtype"] = random_.choice(DTYPES)
        elif kind == 3:
            entry["data_offsets"] = [start + random_.choice([0, step]), end + random_.choice([0, step])]
        elif kind == 4:
            entry["data_offsets"] = head[other]["data_offsets"]
        elif kind == 5:
            head[name], head[other] = head[other], head[name]
        elif kind == 6:
            entry["shape"] = entry["shape"][::-1]
        elif kind == 7:
            head[name] = random_.choice([None, [], 1, "x", {}, {"dtype": "F32"}, {**entry, "z": 1}])
        else:
            entry["shape"] = [*entry["shape"], random_.choice([0, 1, 2**40])]
        return head

    def _header(self, random_: random.Random) -> bytes:
        head = json.loads(json.dumps(self.head))
        name, kind = random_.choice(self.names), random_.randrange(6)
        if kind == 0:
            del head[name]
        elif kind == 1:
            head["x" * random_.randrange(100_000)] = head[name]
        elif kind == 2:
            long = {"format": "pt", "x": "y" * 10**6}
            head["__metadata__"] = random_.choice([None, [], {"a": 1}, {"format": "tf"}, {}, long, "pt"])
        elif kind == 3:
            nothing = [b"{}", b"[]", b"null", b"", b"{" * 50_000, b"[" * 100_000, b'{"a":' * 50_000, b"\xff" * 100]
            return self.pack(random_.choice(nothing))
        elif kind == 4:
            empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            return self.pack({**head, **{f"t{i}": empty for i in range(random_.choice([10, 1000, 20_000]))}})
        else:
            head[f"{name}.more"] = head.pop(name)
        return self.pack(head)

    def _bytes(self, random_: random.Random) -> bytes:
        kind, size = random_.randrange(5), len(self.data)
        if kind == 0:
            return self.pack(self.head, length=random_.choice([*LENGTHS, self.length - 1, self.length + 1]))
        if kind == 1:
            return self.data[: random_.randrange(size)]
        if kind == 2:
            changed = bytearray(self.data)
            changed[random_.randrange(8 + self.length)] = random_.randrange(256)
            return bytes(changed)
        if kind == 3:
            return self.pack(self.head, self.body + b"x" * random_.randrange(1, 100))
        twice = json.dumps(self.head).encode()
        name = json.dumps(random_.choice(self.names)).encode()
        entry = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        return self.pack(twice[:-1] + b"," + name + b":" + entry + b"}")


def lie_of_numbers(data: bytes, random_: random.Random, places: list[tuple[int, str]]) -> bytes:
    """Other numbers at some places of a binary header: (offset, struct format)."""
    changed = bytearray(data)
    for _ in range(random_.choice([1, 1, 2])):
        at, form = random_.choice(places)
        size = struct.calcsize(form)
        value = random_.choice([0, 1, 2, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, random_.getrandbits(8 * size)])
        changed[at : at + size] = struct.pack(form, value % 2 ** (8 * size))
    return bytes(changed)


def idx(data: bytes, random_: random.Random) -> bytes:
    """Type, axes and sizes of an IDX file."""
    if random_.random() < 0.2:
        return data[: random_.randrange(len(data))]
    return lie_of_numbers(data, random_, [(2, "B"), (3, "B"), (4, ">I"), (8, ">I"), (12, ">I")])


def zipped(data: bytes, random_: random.Random) -> bytes:
    """Headers of members, the directory and its end: sizes, offsets, methods, flags, names."""
    starts = [(b"PK\x03\x04", 30), (b"PK\x01\x02", 46), (b"PK\x05\x06", 22)]
    heads = [(at, size) for mark, size in starts for at in _found(data, mark)]
    at, size = random_.choice(heads)
    kind = random_.randrange(4)
    if kind == 0:
        return data[: random_.randrange(len(data))]
    if kind == 1:
        changed = bytearray(data)
        changed[min(at + random_.randrange(4, size + 12), len(data) - 1)] = random_.randrange(256)
        return bytes(changed)
    places = [(at + place, "<H" if place % 4 else "<I") for place in range(4, size - 4, 2)]
    return lie_of_numbers(data, random_, places)


def _found(data: bytes, mark: bytes) -> list[int]:
    places, at = [], data.find(mark)
    while at >= 0:
        places.append(at)
        at = data.find(mark, at + 1)
    return places


def npy(shape: str, descr: str = "'|u1'", order: str = "False", size: int = 64) -> bytes:
    """An .npy whose header says what it is told."""
    words = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    words += b" " * (-(len(words) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words) % 2**16) + words + bytes(size)


SHAPES = [
    "(3, 8, 8)", "(1000000000, 1000, 1000)", "(-1, 8, 8)", "(2**70, 8, 8)", "(0, 0, 0)", "(1.5, 8, 8)", "(None,)",
    "(99999999999999999999, 8, 8)", "(4294967296, 4294967296, 8)", "3", "[3, 8, 8]", "()", "((3,), 8, 8)", "(True, 8)",
    "(" * 300 + ")" * 300, "__import__('os').system('touch opened')", "(1, 8, 8" + ", 1" * 60 + ")",
]  # fmt: skip
DESCRS = [
    "'|u1'", "'|O'", "'<f8'", "'<M8[s]'", "'|V2147483647'", "'<U1000000000'", "[('a', '|u1')]", "[]", "None", "'x'",
    "'|S0'", "[('a', '|O')]", "('|u1', (2, 2))", "{'names': ['a'], 'formats': ['|O']}",
]  # fmt: skip


def array(random_: random.Random) -> bytes:
    """An .npy that lies of shape, type or order, or is cut."""
    made = npy(
        random_.choice(SHAPES), random_.choice(DESCRS), random_.choice(["False", "True", "2", "None"]),
        random_.choice([0, 64, 192, 1000]),
    )  # fmt: skip
    kind = random_.randrange(4)
    if kind == 0:
        return made[: random_.randrange(len(made))]
    if kind == 1:
        return lie_of_numbers(made, random_, [(6, "B"), (7, "B"), (8, "<H")])
    return made


def tail(data: bytes, random_: random.Random, size: int = 2000) -> bytes:
    """Other bytes, up to four, near the end, where parquet has its footer; or another length of it."""
    if random_.random() < 0.15:
        return lie_of_numbers(data, random_, [(len(data) - 8, "<I")])
    if random_.random() < 0.1:
        return data[: random_.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        changed[-random_.randint(1, min(size, len(data)))] = random_.randrange(256)
    return bytes(changed)
