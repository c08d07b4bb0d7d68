"""Pickles as EDM's code writes them, without EDM's code."""

import pickle  # noqa: TID251 - to write what is to be read without it
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from diffdistill.parts.edm.layers import Conv, PyramidDown, Resample

# What the classes of the file claim to be made of: it must never run.
SOURCE = "import pathlib\npathlib.Path({path!r}).write_text('ran')\n"


class Persistent:
    """An object that is written as EDM's `persistence` writes one: source code, class name, attributes."""

    def __init__(self, kind: str, source: str, state: dict[str, Any]):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": kind, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def fake_modules(monkeypatch: Any) -> None:
    """`torch_utils.persistence`, as far as writing needs it: reading with it would be an error."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the file's own reader was called")

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)


def snapshot(network: Any, sentinel: Path, precond: str = "EDMPrecond", **attributes: Any) -> dict[str, Any]:
    """What EDM's training saves of `network`, one of ours; `attributes` go to the preconditioner."""
    source = SOURCE.format(path=str(sentinel))
    config = dict(network.config)
    names = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "augment_dim", "label_dim")
    more = ("embedding_type", "encoder_type", "channel_mult_noise", "resample_filter")
    kwargs = {name: config[name] for name in (*names, *more) if name in config} | {"dropout": np.float64(0.13)}
    kwargs |= {"img_resolution": 8, "in_channels": 3, "out_channels": config["out_channels"]}
    inner = _object(network, type(network).__name__, source)
    inner.meta["state"]["_init_kwargs"] = kwargs
    state = _module_state({"model": inner}, {}) | {"sigma_data": 0.5, "use_fp16": True, "img_resolution": 8}
    outer = Persistent(precond, source, state | attributes)
    extra = Persistent("AugmentPipe", source, {"xflip": 1e8, "Hz": np.arange(6.0).reshape(2, 3).T})
    return {"ema": outer, "augment_pipe": extra, "dataset_kwargs": {"path": "images.zip", "use_labels": True}}


def _module_state(modules: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The attributes that torch gives every module."""
    return {
        "training": False,
        "_parameters": OrderedDict(parameters),
        "_buffers": OrderedDict(),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_modules": OrderedDict(modules),
        "_init_args": (),
    }


def _object(module: nn.Module, kind: str, source: str) -> Persistent:
    children = {}
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleDict):
            children[name] = child.__class__.__new__(nn.ModuleDict)
            children[name].__dict__ |= _module_state(
                {n: _object(c, "UNetBlock", source) for n, c in child.items()}, {}
            )
        elif not isinstance(child, Resample | nn.Identity) or isinstance(module, nn.ModuleDict):
            children[name] = _object(child, type(child).__name__, source)
    parameters = dict(module.named_parameters(recurse=False))
    record = Persistent(kind, source, _module_state(children, parameters))
    buffers = {name: buffer for name, buffer in module.named_buffers(recurse=False) if name == "freqs"}
    resample = module.resample if isinstance(module, Conv | PyramidDown) else None
    if isinstance(module, Conv | PyramidDown):
        buffers["resample_filter"] = None if resample is None else resample.kernel
    record.meta["state"]["_buffers"] = OrderedDict(buffers)
    return record


def write(content: Any, file: Path, protocol: int = 4) -> Path:
    with file.open("wb") as stream:
        pickle.dump(content, stream, protocol=protocol)
    return file


class Call:
    """Pickled as a call of `function` with `arguments`, whatever they are."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call
