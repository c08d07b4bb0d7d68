"""Reading a file of foreign weights: EDM's pickles, files of `torch.save`, safetensors with a config."""

import mmap
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import read_json
from diffdistill.pickle_reader.legacy import read_legacy
from diffdistill.pickle_reader.machine import PickleReader, Refused, shown
from diffdistill.pickle_reader.plain import LEGACY_MAGIC, NAMES, Array, Record, Storage, numbers, storage_id

# Where snapshots keep the network: `ema` in EDM's snapshots, `net` in its training states.
PLACES = ("ema", "net")
ZIP, EMPTY = b"PK\x03\x04", b""


@dataclass(frozen=True)
class Source:
    """What a file says of one network: its description, in EDM's words, and its tensors by name."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]


def read_source(file: Path, config: Path | None = None) -> Source:
    """The network in `file`; `config`, JSON in EDM's words, describes it where the file holds tensors only.

    Raises CheckpointError if the file is damaged, or asks for more than plain data; ConfigError if a description is
    missing.
    """
    if not file.is_file():
        what = "a folder" if file.is_dir() else "missing"
        raise CheckpointError(f"source '{file}' is {what}; give a .pkl, .pt or .safetensors file")
    content = read_safetensors(file) if file.suffix == ".safetensors" else find_network(read_pickle(file), file)
    if isinstance(content, Record):
        source = Source(describe(content, file), named_tensors(content, file))
        return source if config is None else Source(source.description | read_config(config), source.tensors)
    beside = file.with_suffix(".json")
    if config is None and not beside.is_file():
        raise ConfigError(
            f"'{file}' holds tensors and no description of the network; give one with --config, JSON with class_name, "
            f"model_type and what EDM's training_options.json calls network_kwargs"
        )
    return Source(read_config(config or beside), content)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{file}' is no readable safetensors file ({error}); fetch it again") from error


def read_config(file: Path) -> dict[str, Any]:
    """JSON in EDM's words: its `network_kwargs`, or the `training_options.json` that holds them."""
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config '{file}' is not readable JSON ({error}); give another file") from error
    inner = found.get("network_kwargs", found) if isinstance(found, dict) else None
    if not isinstance(inner, dict):
        raise ConfigError(f"--config '{file}' is no JSON object; give class_name, model_type and their settings")
    return inner


def read_pickle(file: Path) -> Any:
    """The content of a pickle, or of a file of `torch.save`, zip or older, as plain data."""
    try:
        with file.open("rb") as stream:
            if stream.read(4) == ZIP:
                return read_torch_zip(file)
            if file.stat().st_size == 0:
                raise CheckpointError("the file is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = PickleReader(NAMES).read(content)  # type: ignore[arg-type]  # it reads as a file does
                if isinstance(found, int) and found == LEGACY_MAGIC:
                    return read_legacy(content, len(content))  # type: ignore[arg-type]
                return found
    except CheckpointError as error:
        raise CheckpointError(f"'{file}': {error}") from None
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read ({error.strerror or error}); give another file") from error


def read_torch_zip(file: Path) -> Any:
    """`torch.save`'s zip: `NAME/data.pkl`, and the numbers of each storage in `NAME/data/KEY`, stored as they are."""
    storages: dict[str, Storage] = {}

    def storage(value: Any) -> Storage:
        kind, key, count = storage_id(value)
        if key not in storages:
            data = content(f"{root}/data/{key}")
            if len(data) != count * kind.itemsize:
                raise ValueError
            storages[key] = Storage(numbers(data, kind))
        return storages[key]

    def content(name: str) -> bytes:
        entry = archive.getinfo(name)
        # A compressed entry may unpack to any size, and torch.save compresses none.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise Refused("the zip file is compressed, which torch.save does not do")
        return archive.read(entry)

    try:
        with zipfile.ZipFile(file) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise Refused("the zip file is not of torch.save")
            root = roots[0]
            with archive.open(archive.getinfo(f"{root}/data.pkl")) as stream:
                return PickleReader(NAMES, storage).read(stream)
    except Refused as error:
        raise CheckpointError(f"{error}; give another file") from None
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise CheckpointError(f"the zip file is damaged ({error}); fetch it again") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors by name of a file of `torch.save` that holds nothing else (a `state_dict`)."""
    content = read_pickle(file)
    tensors = _tensors(content)
    if not tensors or len(tensors) != len(content):
        raise CheckpointError(f"'{file}' holds {_held(content)} and not tensors by name; give a file of a state_dict")
    return tensors


def _held(content: Any) -> str:
    """What a file holds, for a message."""
    if not isinstance(content, dict):
        return f"one object ({shown(type(content).__name__)})"
    return ", ".join(shown(name) for name in list(content)[:8]) or "nothing"


def find_network(content: Any, file: Path) -> Record | dict[str, Tensor]:
    """The network of a snapshot: an object, or a dict of nothing but tensors."""
    places = [content]
    if isinstance(content, dict):
        places += [content[name] for name in PLACES if name in content]
    for place in reversed(places):
        if isinstance(place, Record):
            return place
        tensors = _tensors(place) if isinstance(place, dict) else {}
        if tensors and len(tensors) == len(place):
            return tensors
    raise CheckpointError(f"'{file}' holds no network ({_held(content)}); a snapshot with 'ema' or 'net' is read")


def describe(network: Record, file: Path) -> dict[str, Any]:
    """EDM's description of a network object: the preconditioner's class and attributes, the network's settings."""
    inner = _child(network, "model")
    settings = inner.attributes.get("_init_kwargs") if inner is not None else None
    if inner is None or not isinstance(settings, dict):
        raise CheckpointError(
            f"'{file}' holds an object of class {shown(network.kind)}, which is no preconditioned network of EDM"
        )
    plain = {key: value for key, value in network.attributes.items() if isinstance(value, int | float)}
    return plain | settings | {"class_name": network.kind, "model_type": inner.kind}


def _child(record: Record, name: str) -> Record | None:
    modules = record.attributes.get("_modules")
    child = modules.get(name) if isinstance(modules, dict) else None
    return child if isinstance(child, Record) else None


def named_tensors(network: Record, file: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a network object by path, as `state_dict` names them."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        prefix, record = waiting.pop()
        if id(record) in seen:
            raise CheckpointError(f"'{file}' holds a network that contains one layer twice; it cannot be converted")
        seen.add(id(record))
        for group in ("_parameters", "_buffers"):
            held = record.attributes.get(group)
            found |= {prefix + name: tensor for name, tensor in _tensors(held).items()} if held else {}
        modules = record.attributes.get("_modules") or {}
        for name in modules if isinstance(modules, dict) else ():
            child = _child(record, name)
            if child is not None:
                waiting.append((f"{prefix}{name}.", child))
    return found


def _tensors(values: Any) -> dict[str, Tensor]:
    if not isinstance(values, dict):
        return {}
    opened = {str(name): value.tensor if isinstance(value, Array) else value for name, value in values.items()}
    return {name: value for name, value in opened.items() if isinstance(value, Tensor)}
