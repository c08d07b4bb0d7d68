"""From a file of EDM's weights, or of tensors with EDM's description of a network, to a denoiser of this package."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import read_json, reason_of
from diffdistill.parts.edm.networks import DhariwalUNet, EDMNetwork, SongUNet
from diffdistill.parts.edm.preconditioning import SIGMA_DATA, Kind, Preconditioning
from diffdistill.pickle_reader.machine import shown
from diffdistill.pickle_reader.plain import Record
from diffdistill.pickle_reader.source import read_pickle, read_safetensors, shown_content, tensors_in
from diffdistill.process import EDM

NETWORKS: Mapping[str, type[EDMNetwork]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
PRECONDITIONERS: Mapping[str, Kind] = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}
# EDM's words for the settings of a preconditioning, and ours; epsilon_t only bounds the levels.
CONSTANTS = {"beta_d": "beta_d", "beta_min": "beta_min", "M": "steps", "C_1": "c_1", "C_2": "c_2"}
MOST_LEVELS = 100_000  # of iDDPM; they are computed one after the other
# The range that EDM's sampler takes of any network (2206.00364, Table 1).
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
# Where snapshots keep the network: `ema` in EDM's snapshots, `net` in its training states.
PLACES = ("ema", "net")
LISTS, WHOLE = ("channel_mult", "attn_resolutions", "resample_filter"), (
    "model_channels", "channel_mult_emb", "num_blocks", "channel_mult_noise",
)  # fmt: skip
CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}


@dataclass(frozen=True)
class Source:
    """One network of a file: its description, in EDM's words, and its tensors by name."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]


def build(source: Source) -> Denoiser:
    """The denoiser that `source` describes, with its weights, in evaluation mode.

    Raises CheckpointError, one sentence, if the description is unknown or tensors and description do not fit.
    """
    description = source.description
    kind = _choice(description, "class_name", PRECONDITIONERS)
    network_class = NETWORKS[_choice(description, "model_type", NETWORKS)]
    state = {name.removeprefix("model."): tensor for name, tensor in source.tensors.items()}
    state.pop("u", None)  # iDDPM's levels; they follow from its constants
    preconditioning = Preconditioning(PRECONDITIONERS[kind], **_constants(description))
    null = bool(_number(description, "label_dropout", 0.0, 0.0, 1.0))
    config = _shape(state, null) | _settings(description, network_class)
    config["preconditioning"] = preconditioning.settings()
    network = _filled(network_class, config, state)
    sigma_data = _number(description, "sigma_data", 0.5, 1e-6, 1e6) if preconditioning.kind == "edm" else SIGMA_DATA
    process = EDM(sigma_data, 1000.0, *_levels(description, preconditioning))
    return Denoiser(network, process, null_class=config["label_dim"] if null and config["label_dim"] else None).eval()


def _filled(network_class: type[EDMNetwork], config: dict[str, Any], state: dict[str, Tensor]) -> EDMNetwork:
    """The network with the tensors of `state`, each checked by name and shape before memory is taken for it."""
    _check_extent(config, state)
    try:
        with torch.device("meta"):
            expected = network_class(**config).state_dict()
    except (ArithmeticError, ValueError, RuntimeError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the description makes no network ({reason}); check it") from error
    filters = {name: state.pop(name) for name in list(state) if name.endswith("resample_filter")}
    _check_filters(filters, config.get("resample_filter", (1, 1)))
    for name in [*sorted(expected.keys() - state.keys()), *sorted(state.keys() - expected.keys())]:
        what = "lacks" if name in expected else "has a further tensor"
        raise CheckpointError(f"the file {what} '{shown(name)}', so it is not the network it describes; check it")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape or not state[name].is_floating_point():
            have, want = tuple(state[name].shape), tuple(tensor.shape)
            raise CheckpointError(
                f"tensor '{name}' is {have} where the description wants {want}; check the description"
            )
    network = network_class(**config)
    network.load_state_dict(state)
    return network


def _check_extent(config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """The description is no deeper and no wider than the file's tensors: even an empty network takes time to build."""
    blocks = config.get("num_blocks", 1) * len(config.get("channel_mult", (1,)))
    width = config.get("model_channels", 1) * max(config.get("channel_mult", (1,)))
    widest = max((size for tensor in state.values() for size in tensor.shape), default=0)
    for what, described, held in (("blocks", blocks, len(state)), ("channels", width, widest)):
        if described > held:
            raise CheckpointError(
                f"the description has {described} {what}, and the file has tensors for {held} at most; check "
                f"num_blocks, model_channels and channel_mult"
            )


def _check_filters(filters: dict[str, Tensor], taps: Any) -> None:
    """The filters of the file are those of its description (we store the description)."""
    line = torch.tensor(taps, dtype=torch.float32)
    expected = torch.outer(line, line) / line.sum() ** 2
    for name, tensor in filters.items():
        if tensor.numel() != expected.numel() or not torch.allclose(tensor.float().reshape(expected.shape), expected):
            raise CheckpointError(f"'{shown(name)}' is not the filter of the description; check resample_filter")


def _shape(state: dict[str, Tensor], null: bool) -> dict[str, Any]:
    """What the tensors say themselves: size, channels, labels, augmentation."""
    first = next((name for name in state if re.fullmatch(r"enc\.(\d{1,4})x\1_conv\.weight", name)), None)
    if first is None:
        raise CheckpointError("the file has no tensor 'enc.NxN_conv.weight'; it is not a network of EDM's layout")
    size = int(first.removeprefix("enc.").partition("x")[0])
    last = state.get("out_conv.bias", state.get(f"dec.{size}x{size}_aux_conv.bias"))
    columns = {name: _columns(state, f"map_{name}.weight") for name in ("label", "augment")}
    return {
        "sample_size": size,
        "in_channels": _columns(state, first),
        "out_channels": 0 if last is None else last.numel(),
        "label_dim": columns["label"],
        "num_class_embeds": columns["label"] + int(null) if columns["label"] else None,
        "augment_dim": columns["augment"],
    }


def _columns(state: dict[str, Tensor], name: str) -> int:
    return int(state[name].shape[1]) if name in state and state[name].ndim > 1 else 0


def _settings(description: dict[str, Any], network_class: type[EDMNetwork]) -> dict[str, Any]:
    """The settings of the inner network, checked: they decide how much is built."""
    settings: dict[str, Any] = {
        name: _number(description, name, None, 1, 65536) for name in WHOLE if name in description
    }
    for name in LISTS:
        if name in description:
            values = description[name]
            good = isinstance(values, list | tuple) and len(values) <= 16
            if not good or not all(type(v) is int and 0 < v <= 65536 for v in values):
                raise CheckpointError(f"{name} is no short list of whole numbers; check the description")
            settings[name] = list(values)
    for name, allowed in CHOICES.items():
        if name in description and network_class is SongUNet:
            settings[name] = _choice(description, name, allowed)
    settings.pop("decoder_type", None)
    if "dropout" in description:
        settings["dropout"] = _number(description, "dropout", None, 0.0, 1.0)
    return settings


def _constants(description: dict[str, Any]) -> dict[str, Any]:
    given = {
        ours: _number(description, theirs, None, 0.0, MOST_LEVELS if theirs == "M" else 1e6)
        for theirs, ours in CONSTANTS.items()
        if theirs in description
    }
    return given | ({"steps": int(given["steps"])} if "steps" in given else {})


def _levels(description: dict[str, Any], preconditioning: Preconditioning) -> tuple[float, float]:
    """The network's own lowest and highest level, inside EDM's."""
    epsilon_t = _number(description, "epsilon_t", 1e-5, 0.0, 1.0)
    lowest, highest = preconditioning.range(epsilon_t)
    low = _number(description, "sigma_min", lowest, 0.0, math.inf)
    high = _number(description, "sigma_max", highest, 0.0, math.inf)
    return max(low, SIGMA_MIN), min(high, SIGMA_MAX)


def _number(description: dict[str, Any], name: str, default: Any, least: float, most: float) -> Any:
    value = description.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise CheckpointError(f"{name} is no number from {least:g} to {most:g}; check the description")
    return value


def _choice(description: dict[str, Any], name: str, allowed: Any) -> str:
    """One of a few words; `training.networks.EDMPrecond` means `EDMPrecond`."""
    value = description.get(name)
    word = value.rpartition(".")[2] if isinstance(value, str) else ""
    if word not in allowed:
        given = f"is '{shown(word)}'" if word else "is missing"
        raise CheckpointError(f"{name} {given}, and convert knows {', '.join(allowed)}; check the description")
    return word


# ---- reading the description of a network


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


def read_config(file: Path) -> dict[str, Any]:
    """JSON in EDM's words: its `network_kwargs`, or the `training_options.json` that holds them."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config '{file}' is not readable JSON ({reason_of(error)}); give another file") from error
    inner = content.get("network_kwargs", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise ConfigError(f"--config '{file}' is no JSON object; give class_name, model_type and their settings")
    return inner


def find_network(content: Any, file: Path) -> Record | dict[str, Tensor]:
    """The network of a snapshot: an object, or a dict of nothing but tensors."""
    places = [content]
    if isinstance(content, dict):
        places += [content[name] for name in PLACES if name in content]
    for place in reversed(places):
        if isinstance(place, Record):
            return place
        tensors = tensors_in(place) if isinstance(place, dict) else {}
        if tensors and len(tensors) == len(place):
            return tensors
    raise CheckpointError(
        f"'{file}' holds no network ({shown_content(content)}); a snapshot with 'ema' or 'net' is read"
    )


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
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        prefix, record = waiting.pop()
        if id(record) in seen:
            raise CheckpointError(f"'{file}' holds a network that contains one layer twice; it cannot be converted")
        seen.add(id(record))
        for group in ("_parameters", "_buffers"):
            values = record.attributes.get(group)
            tensors |= {prefix + name: tensor for name, tensor in tensors_in(values).items()} if values else {}
        modules = record.attributes.get("_modules") or {}
        for name in modules if isinstance(modules, dict) else ():
            child = _child(record, name)
            if child is not None:
                waiting.append((f"{prefix}{name}.", child))
    return tensors
