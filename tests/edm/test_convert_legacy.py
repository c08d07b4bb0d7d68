"""Files of `torch.save` as they were before its zip files: every number, and nothing run."""

import io
import pickle  # noqa: TID251 - to write what is to be read without it
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffdistill.errors import CheckpointError
from diffdistill.pickle_reader.source import read_pickle, read_tensors


def saved(content: Any, file: Path, *, zipped: bool = False) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=zipped)  # noqa: TID251
    return file


def tensors() -> dict[str, Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    return {
        "whole": base,
        "part": base[5:11],
        "turned": base.view(4, 6).T,
        "number": torch.tensor(7),
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([[1.5]], dtype=torch.bfloat16),
        "double": torch.linspace(0, 1, 9, dtype=torch.float64).view(3, 3),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.empty(0, 3),
    }


@pytest.mark.parametrize("zipped", [False, True], ids=["before", "zip"])
def test_every_number_comes_back(tmp_path: Path, zipped: bool):
    given = tensors()
    found = read_tensors(saved(given, tmp_path / "x.pth", zipped=zipped))
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def test_the_state_of_a_module_comes_back(tmp_path: Path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = read_tensors(saved(net.state_dict(), tmp_path / "x.pth"))
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


def test_an_object_that_runs_code_is_refused(tmp_path: Path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    file = saved({"a": torch.ones(3), "b": Bomb()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="nothing of the file was run"):
        read_pickle(file)
    assert not marker.exists()


def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds a, epoch and not tensors by name"):
        read_tensors(saved({"a": torch.ones(3), "epoch": 5}, tmp_path / "x.pth"))
    with pytest.raises(CheckpointError, match=r"holds one object \(Tensor\) and not tensors by name"):
        read_tensors(saved(torch.ones(3), tmp_path / "y.pth"))
    with pytest.raises(CheckpointError, match="holds nothing and not tensors by name"):
        read_tensors(saved({}, tmp_path / "z.pth"))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path):
    whole = saved(tensors(), tmp_path / "whole.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(whole), 37):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_tensors(cut)


def forged(keys: Any, *, count: int, stored: int | None = None, little: bool = True, version: int = 1001) -> bytes:
    """A file that declares `count` floats of storage '0', names `keys`, and holds three numbers."""

    class Reference:
        def __init__(self, value: Any) -> None:
            self.value = value

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.value if isinstance(value, Reference) else None

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Shown):
                storage = Reference(("storage", torch.FloatStorage, "0", "cpu", count, None))
                return torch._utils._rebuild_tensor_v2, (storage, 0, (3,), (1,), False, OrderedDict())
            return NotImplemented

    class Shown:
        pass

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, version, {"protocol_version": 1001, "little_endian": little}):
        pickle.dump(value, stream, protocol=2)
    Pickler(stream, protocol=2).dump({"a": Shown()})
    pickle.dump(keys, stream, protocol=2)
    stream.write((count if stored is None else stored).to_bytes(8, "little"))
    stream.write(torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes())
    return stream.getvalue()


def test_a_file_written_by_hand_is_read(tmp_path: Path):
    file = tmp_path / "x.pth"
    file.write_bytes(forged(["0"], count=3))
    assert torch.equal(read_tensors(file)["a"], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"keys": ["1"], "count": 3}, "damaged or cut short"),
        ({"keys": ["0", "0"], "count": 3}, "damaged or cut short"),
        ({"keys": {"0": 1}, "count": 3}, "damaged or cut short"),
        ({"keys": ["0"], "count": 3, "stored": 4}, "damaged or cut short"),
        ({"keys": ["0"], "count": 4}, "damaged or cut short"),
        ({"keys": ["0"], "count": 2**61}, "damaged or cut short"),
        ({"keys": ["0"], "count": 2}, "damaged or cut short"),
        ({"keys": ["0"], "count": 3, "little": False}, "not little-endian"),
        ({"keys": ["0"], "count": 3, "version": 1002}, "unknown format"),
    ],
    ids=["other-key", "key-twice", "no-list", "other-count", "too-few", "huge", "too-small", "endian", "version"],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, wrong: dict[str, Any], sentence: str):
    file = tmp_path / "x.pth"
    file.write_bytes(forged(**wrong))
    with pytest.raises(CheckpointError, match=sentence) as error:
        read_tensors(file)
    assert str(file) in str(error.value)
