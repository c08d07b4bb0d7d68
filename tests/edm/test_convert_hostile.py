"""A hostile or broken file: exit code 4, one line, nothing written, nothing run."""

import builtins
import io
import os
import pickle  # noqa: TID251 - to write what must not be opened with it
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from edm_pickles import Call, fake_modules, snapshot, write
from edm_tiny import tiny_network

from diffdistill.cli import main
from diffdistill.errors import CheckpointError
from diffdistill.parts.edm.convert import Source, build
from diffdistill.pickle_reader import machine
from diffdistill.pickle_reader.machine import PickleReader
from diffdistill.pickle_reader.plain import NAMES, Record

# An import that is seen: a module of Python's that nothing here uses, and that says so when it is imported.
WITNESS = "this"


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Converts bytes or an object, and checks that it was refused without a trace."""
    fake_modules(monkeypatch)
    sentinel = tmp_path / "ran"
    for module, name in ((os, "system"), (subprocess, "Popen"), (builtins, "eval"), (builtins, "exec")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back, should a file change them

    def check(content, sentence):
        file = tmp_path / "net.pkl"
        if isinstance(content, bytes):
            file.write_bytes(content.replace(b"SENTINEL", str(sentinel).encode()))
        else:
            write(content, file)
        sys.modules.pop(WITNESS, None)
        code = main(["convert", str(file), "--out", str(tmp_path / "model")])
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert code == 4, line
        assert sentence in line
        assert captured.out == ""
        assert WITNESS not in sys.modules
        assert [path.name for path in tmp_path.iterdir()] == ["net.pkl"]

    return check


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_not_made_in_any_protocol(protocol, tmp_path, refused):
    refused(
        pickle.dumps(Call(os.system, f"touch {tmp_path}/ran"), protocol), "system', which no file of weights needs"
    )


class Filled:
    """Its state would be given to `__setstate__`, or set on the class."""

    def __reduce__(self):
        return OrderedDict, (), {"__setstate__": print, "__class__": dict}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cposix\nsystem\n(S'touch SENTINEL'\ntR.", "posix.system"),
        (b"cnt\nsystem\n(S'x'\ntR.", "nt.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cbuiltins\nexec\n(S'import this'\ntR.", "builtins.exec"),
        (b"cbuiltins\n__import__\n(S'this'\ntR.", "builtins.__import__"),
        (b"cthis\nzen\n.", "this.zen"),
        (
            b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch SENTINEL'\ntR.",
            "builtins.getattr",
        ),
        (b"csubprocess\nPopen\n(S'touch SENTINEL'\nt\x81.", "subprocess.Popen"),
        (b"ctorch\nload\n(S'x'\ntR.", "torch.load"),
        (b"ctorch.hub\nload\n(S'x'\ntR.", "torch.hub.load"),
        (b"crunpy\n_run_code\n.", "runpy._run_code"),
        (b"cdiffdistill.convert.source\nread_pickle\n(S'/etc/passwd'\ntR.", "read_pickle"),
        # A way through a name that is allowed, to one that is not.
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "OrderedDict.__init__"),
        (b"\x80\x04\x8c\x05torch\x8c\x15FloatStorage.__init__\x93.", "torch.FloatStorage.__init__"),
        # The name is put together from memory.
        (b"\x80\x04\x8c\x06system\x94\x8c\x05posix\x94h\x01h\x00\x93\x8c\x0etouch SENTINEL\x85R.", "posix.system"),
        # The name is no text.
        (b"\x80\x04]\x8c\x06system\x93.", "list.system"),
    ],
)
def test_names_outside_the_table_end_the_reading(content, name, refused):
    refused(content, f"{name}', which no file of weights needs")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"(S'touch SENTINEL'\nios\nsystem\n.", "uses the instruction INST"),
        (b"(cos\nsystem\nS'x'\no.", "os.system"),
        (b"\x80\x02\x82\x01.", "uses the instruction EXT1"),
        (b"\x80\x04]}\x92.", "uses the instruction NEWOBJ_EX"),
        (b"\x80\x05\x97.", "uses the instruction NEXT_BUFFER"),
        (b"S'os.system'\n(S'touch SENTINEL'\ntR.", "calls something that is no name"),
        (b"](tR.", "calls something that is no name"),
        # BUILD on an allowed name, which must stay as it is, and on text.
        (b"ctorch\nFloatStorage\n}(S'make'\nS'x'\nub.", "sets attributes of something that has none"),
        (b"ccollections\nOrderedDict\n}(S'__call__'\nNub.", "sets attributes of something that has none"),
        (b"S'text'\n}b.", "sets attributes of something that has none"),
        (b"Pposix.system\n.", "refers to 'posix.system' outside of it"),
        (b"NQ.", "refers to data outside of it"),
    ],
)
def test_instructions_that_no_file_of_weights_needs_are_refused(content, sentence, refused):
    refused(content, sentence)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80", b"no pickle at all", b"\x80\x04.", b"\x80\x04NN.", b"0.", b"t.", b"1.", b"\x85.", b"R.", b"b.",
        b"h\x07.", b"Na.", b"(u.", b"]Na", b"\x80\x04N",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN", b"I" + b"9" * 10000 + b"\n.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffx.",
        b"\x8d\x00\x00\x00\x00\x00\x01\x00\x00x.", b"\x8b\xff\xff\xff\x7f1.", b"X\xff\xff\xff\xffx.",
        b"ccollections\nOrderedDict\nNR.", b"ccollections\nOrderedDict\n(I1\nI2\ntR.",
    ],
)  # fmt: skip
def test_what_is_no_whole_pickle_is_a_sentence(content, refused):
    refused(content, "empty" if content == b"" else "the pickle is damaged or cut short")


def test_a_file_cut_anywhere_is_a_sentence(tmp_path, refused):
    whole = pickle.dumps(snapshot(tiny_network("ddpmpp"), tmp_path / "ran"))
    for end in np.linspace(3, len(whole) - 1, 23, dtype=int):
        refused(whole[:end], "damaged or cut short")


def test_a_flipped_byte_is_read_or_refused_and_never_run(tmp_path, monkeypatch):
    fake_modules(monkeypatch)
    whole = pickle.dumps(snapshot(tiny_network("ddpmpp"), tmp_path / "ran"))
    random = np.random.default_rng(0)
    for at in random.integers(0, len(whole), 40):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(random.integers(8))
        try:
            assert isinstance(PickleReader(NAMES).read(io.BytesIO(bytes(changed))), dict)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert list(tmp_path.iterdir()) == []


def storage_bytes(payload=None, count=4, claimed=None):
    """A storage as old torch.save wrote it; `payload` in place of its id."""
    stored = ("storage", torch.FloatStorage, "0", "cpu", count if claimed is None else claimed, None)
    out = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return stored if value == "the storage" else None

    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, payload or "the storage", ["0"]):
        Pickler(out, protocol=2).dump(part)
    out.write(struct.pack("<q", count) + b"\0" * (4 * count))
    return out.getvalue()


def from_bytes(data):
    return Call(torch.storage._load_from_bytes, data)


class Rebuilt:
    """A tensor over `storage`, whatever it claims."""

    def __init__(self, storage, size, stride=(1,), offset=0):
        self.parts = storage, offset, size, stride, False, OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.parts


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (from_bytes(storage_bytes(Call(os.system, "touch SENTINEL"))), "system', which no file of weights needs"),
        (from_bytes(storage_bytes(claimed=2**40)), "damaged"),
        (from_bytes(storage_bytes(claimed=-1)), "damaged"),
        (from_bytes(storage_bytes()[:-3]), "damaged"),
        (from_bytes(pickle.dumps(Call(os.system, "touch SENTINEL"), 2)), "system', which no file of weights needs"),
        (from_bytes(b"PK\x03\x04 a zip inside"), "damaged"),
        (from_bytes("text"), "damaged"),
        # A tensor larger than its numbers, outside of them, or of a negative size.
        (Rebuilt(from_bytes(storage_bytes()), (10**12,), (0,)), "damaged"),
        (Rebuilt(from_bytes(storage_bytes()), (2, 2), (2, 2)), "damaged"),
        (Rebuilt(from_bytes(storage_bytes()), (4,), (1,), 1), "damaged"),
        (Rebuilt(from_bytes(storage_bytes()), (-4,), (1,)), "damaged"),
        (Rebuilt(from_bytes(storage_bytes()), (4,), (-1,), 3), "damaged"),
        (Rebuilt("no storage", (4,)), "damaged"),
        (np.array([{"an": "object"}], dtype=object), "array of something other than numbers"),
        (np.array(["text"]), "array of something other than numbers"),
        (np.arange(3, dtype=">f4"), "not of little-endian numbers"),
        ({(1, 2): 3}, "uses a tuple as a key"),
        (Filled(), "'builtins.print"),
    ],
)  # fmt: skip
def test_tensors_and_arrays_that_are_not_what_they_claim(content, sentence, refused):
    refused(content, sentence)


def test_a_tensor_that_shows_one_number_twice_is_refused_and_one_that_does_not_is_read():
    def read(content):
        return PickleReader(NAMES).read(io.BytesIO(pickle.dumps(content)))

    grid = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(read({"x": grid.t(), "y": grid[1]})["x"], grid.t())
    assert read(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(CheckpointError):
        read(grid[:1].expand(5, 3))


def test_a_network_that_contains_itself_is_refused(tmp_path, refused):
    content = snapshot(tiny_network("ddpmpp"), tmp_path / "ran")
    outer = content["ema"].meta["state"]
    outer["_modules"]["twin"] = outer["_modules"]["model"]
    refused(content, "contains one layer twice")


def test_keys_that_cost_without_bound_are_refused_at_once():
    """A tuple of a tuple of ... twice each takes 2^n steps to hash."""
    content = b"\x80\x04})" + b"2\x86" * 64 + b"Ns."
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="uses a tuple as a key"):
        PickleReader(NAMES).read(io.BytesIO(content))
    assert time.perf_counter() - start < 1


def test_a_small_file_does_not_become_large_data():
    """The same megabyte asked for three thousand times stays one."""
    stored = storage_bytes(count=250_000)
    name, arguments = b"ctorch.storage\n_load_from_bytes\n", b"h\x64"
    remembered = b"\x80\x04B" + struct.pack("<I", len(stored)) + stored + b"\x85q\x640]("
    content = remembered + (name + arguments + b"R") * 3_000 + b"e."
    assert len(content) < 1.2e6
    storages = PickleReader(NAMES).read(io.BytesIO(content))
    assert len(storages) == 3_000
    assert len({storage.values.data_ptr() for storage in storages}) == 1


def test_a_record_is_data_whatever_its_attributes_are_called():
    meta = {"type": "class", "class_name": "X", "state": {"__setstate__": 1, "__class__": 2, "fill": 3, "kind": 4}}
    record = NAMES["torch_utils.persistence", "_reconstruct_persistent_obj"](meta)
    assert type(record) is Record
    assert record.kind == "X"
    assert record.attributes == meta["state"]


def test_a_compressed_zip_is_refused(tmp_path, capsys):
    file = tmp_path / "net.pt"
    storage = ("storage", torch.FloatStorage, "0", "cpu", 250_000)
    out = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return storage if value == "it" else None

    Pickler(out, 2).dump({"net": {"x": Rebuilt("it", (250_000,))}})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", out.getvalue())
        archive.writestr("net/data/0", b"\0" * 10**6)
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 4
    assert "the zip file is compressed, which torch.save does not do" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 100])
def test_a_broken_zip_is_a_sentence(content, refused):
    refused(content, "the zip file is damaged")


def test_text_of_the_file_cannot_write_to_the_terminal(refused):
    refused(b"\x80\x04\x8c\x05\x1b[2Jx\x8c\x01y\x93.", "asks for '?[2Jx.y'")


def test_the_instructions_of_a_file_are_counted_those_of_pickles_inside_too(monkeypatch, refused):
    monkeypatch.setattr(machine, "MOST_STEPS", 1000)
    refused(b"\x80\x02(" + b"]" * 2000 + b"l.", "more than 1,000 instructions")
    inner = b"\x80\x02(" + b"]" * 300 + b"l."
    nested = {("m", "n"): lambda data: PickleReader({}).read(io.BytesIO(data))}
    call = b"cm\nn\n(B" + struct.pack("<I", len(inner)) + inner + b"tR0"
    assert PickleReader(nested).read(io.BytesIO(b"\x80\x02" + call + b"N.")) is None
    with pytest.raises(CheckpointError, match="more than 1,000 instructions"):
        PickleReader(nested).read(io.BytesIO(b"\x80\x02" + call * 4 + b"N."))
    assert machine._Steps.depth == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_blocks": 65536}, "blocks"),
        ({"model_channels": 65536, "channel_mult": [65536] * 16}, "channels|blocks"),
        ({"model_type": "SongUNet", "num_blocks": 65536, "model_channels": 4}, "blocks"),
        ({"class_name": "iDDPMPrecond", "M": 10**9}, "M is no number"),
        ({"model_channels": 1}, "makes no network"),
        ({"model_channels": 1, "num_blocks": 1, "channel_mult": [1] * 16}, "blocks"),
    ],
)
def test_a_description_larger_than_its_file_builds_nothing(settings, sentence):
    tensors = {"enc.8x8_conv.weight": torch.zeros(4, 3, 3, 3), "out_conv.bias": torch.zeros(3)}
    plain = {"class_name": "EDMPrecond", "model_type": "DhariwalUNet", "num_blocks": 1, "channel_mult": [1]}
    with pytest.raises(CheckpointError, match=sentence):
        build(Source(plain | settings, tensors))
