"""A Keras layers model as TensorFlow.js packs it: its graph and weights read, and run layer by layer.

`browserified` files hold JavaScript object literals (the model) and base64 (the shards of the weights); they are read
as text. `run` follows the topology in float64 and knows nothing of any architecture.
"""

import base64
import json
import re
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BYTES = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}


@dataclass(frozen=True)
class KerasModel:
    """layers: in the order of the file, each with `class_name`, `config` and `inbound_nodes`; weights by name."""

    layers: list[dict[str, Any]]
    weights: dict[str, Tensor]


def read_model(folder: Path) -> KerasModel:
    """A model whose `model.min.js` names its shards `group1-shard1ofN`."""
    described = literal((folder / "model.min.js").read_text())
    (group,) = described["weightsManifest"]
    content = b"".join(shard((folder / f"{name}.min.js").read_text()) for name in group["paths"])
    layers = described["modelTopology"]["model_config"]["config"]["layers"]
    return KerasModel(layers, read_weights(content, group["weights"]))


def literal(script: str) -> Any:
    """The object that the one module of a browserified script exports, as JSON."""
    start = script.index(".exports={") + len(".exports=")
    text = re.sub(r"([{,])([A-Za-z_]\w*):", r'\1"\2":', script[start:])
    text = text.replace("!0", "true").replace("!1", "false")
    text = re.sub(r"([:\[,-])\.(\d)", r"\g<1>0.\2", text)
    return json.JSONDecoder().raw_decode(text)[0]


def shard(script: str) -> bytes:
    """The bytes of the one base64 string in a script of weights."""
    return base64.b64decode(max(re.findall(r'"([A-Za-z0-9+/=]+)"', script), key=len))


def read_weights(content: bytes, entries: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Weights one after the other; a quantised number q means q scale + min."""
    found, place = {}, 0
    for entry in entries:
        how = entry.get("quantization")
        kind = np.dtype(BYTES[how["dtype"] if how else entry["dtype"]])
        count = prod(entry["shape"])
        numbers = np.frombuffer(content, kind, count, place).astype(np.float64)
        place += count * kind.itemsize
        values = numbers * how["scale"] + how["min"] if how else numbers
        found[entry["name"]] = torch.from_numpy(values).reshape(entry["shape"])
    assert place == len(content)
    return found


def run(model: KerasModel, x: Tensor, until: str) -> Tensor:
    """Float64 `(N, H, W, C)` in, what layer `until` gives out."""
    values: dict[str, Tensor] = {}
    for layer in model.layers:
        name, kind, config = layer["name"], layer["class_name"], layer["config"]
        inputs = [values[node[0]] for node in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else [x]
        weights = {key.rpartition("/")[2]: w for key, w in model.weights.items() if key.startswith(f"{name}/")}
        values[name] = LAYERS[kind](config, weights, *inputs)
        if name == until:
            return values[name]
    raise KeyError(until)


def _padding(config: dict[str, Any], x: Tensor, kernel: list[int]) -> list[int]:
    """`same`: as much as makes ceil(size / stride) places, the odd one behind; F.pad wants the last axis first."""
    if config["padding"] == "valid":
        return [0, 0, 0, 0]
    found: list[int] = []
    for size, k, stride in zip(x.shape[1:3], kernel, config["strides"], strict=True):
        total = max((ceil(size / stride) - 1) * stride + k - size, 0)
        found = [total // 2, total - total // 2, *found]
    return found


def _convolution(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> Tensor:
    assert config["dilation_rate"] == [1, 1]
    assert config["activation"] == "linear"
    padded = F.pad(x.permute(0, 3, 1, 2), _padding(config, x, config["kernel_size"]))
    y = F.conv2d(padded, w["kernel"].permute(3, 2, 0, 1), w.get("bias"), stride=config["strides"])
    return y.permute(0, 2, 3, 1)


def _normalisation(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> Tensor:
    assert config["axis"] in (3, -1)
    y = (x - w["moving_mean"]) / (w["moving_variance"] + config["epsilon"]).sqrt()
    return y * w.get("gamma", 1) + w.get("beta", 0)


def _windows(config: dict[str, Any], x: Tensor, fill: float) -> Tensor:
    """`(N, H', W', C, k k)`: what each place of a pool sees."""
    rows, columns = config["pool_size"]
    padded = F.pad(x.permute(0, 3, 1, 2), _padding(config, x, config["pool_size"]), value=fill)
    down, across = config["strides"]
    return padded.unfold(2, rows, down).unfold(3, columns, across).flatten(4).permute(0, 2, 3, 1, 4)


def _mean(config: dict[str, Any], _: dict[str, Tensor], x: Tensor) -> Tensor:
    """TensorFlow's: the border counts for nothing."""
    inside = _windows(config, torch.ones_like(x[:1, :, :, :1]), 0)
    return _windows(config, x, 0).sum(4) / inside.sum(4)


def _dense(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> Tensor:
    return ACTIVATIONS[config["activation"]](x @ w["kernel"] + w["bias"])


ACTIVATIONS = {"linear": lambda x: x, "relu": torch.relu, "softmax": lambda x: x.softmax(-1)}
LAYERS = {
    "InputLayer": lambda config, w, x: x,
    "Conv2D": _convolution,
    "BatchNormalization": _normalisation,
    "Activation": lambda config, w, x: ACTIVATIONS[config["activation"]](x),
    "MaxPooling2D": lambda config, w, x: _windows(config, x, -float("inf")).amax(4),
    "AveragePooling2D": _mean,
    "Concatenate": lambda config, w, *parts: torch.cat(parts, config["axis"]),
    "Flatten": lambda config, w, x: x.flatten(1),
    "Dense": _dense,
    "Dropout": lambda config, w, x: x,
}
