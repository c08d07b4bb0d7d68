"""A text-to-image model in one file, as other programs keep it, made a diffusers folder (`diffdistill convert`).

diffusers knows the names that such files have (`from_single_file`); the pipeline that `config` names tells what they
belong to, and gives the parts that the file lacks: of a file of the network alone, encoders and VAE.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import PICKLES, read_json, sha256, write_json
from diffdistill.loading import check_finite, held_by, load_whole, quiet
from diffdistill.pipelines.folder import fetched, local, locate, write_model
from diffdistill.pipelines.folder import read_json as read_index
from diffdistill.pipelines.text.adapter import class_of

# How names of tensors begin where a file has the part; without them it is one of the network alone.
OF_PART = {"vae": ("first_stage_model.", "vae."), "text": ("cond_stage_model.", "conditioner.", "text_encoders.")}
WITHOUT = ("safety_checker", "feature_extractor", "image_encoder")
SETTINGS = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]


def convert_single(source: Path, config: str, out: Path) -> str:
    """Write `out`, whole or not at all; returns what it is, in words.

    config: a folder in diffusers format or a Hub id, of the architecture that the file has; of one whose file has all
    parts only settings and tokenizers are read. Weights keep the precision of the file.
    Raises CheckpointError for a pickle, a damaged file, and one that does not fit; ConfigError for a pipeline that
    diffusers reads from no single file.
    """
    kinds = _tensors(source)
    there = {part for part, starts in OF_PART.items() if any(key.startswith(starts) for key in kinds)}
    folder = _config_folder(config, whole=there != set(OF_PART))
    pipeline = _read(source, folder, there, getattr(torch, held_by(kinds.values())))
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for network in networks.values():
        check_finite(network, source)

    def write_parts(staged: Path) -> dict[str, Any]:
        with quiet():
            pipeline.save_pretrained(staged, safe_serialization=True)
        for file in (*staged.glob("*.json"), *staged.glob("*/config.json")):
            _forget(file)
        return {"role": "teacher"}

    write_model(out, write_parts, None, source={"file": source.name, "sha256": sha256(source)})
    count = sum(parameter.numel() for network in networks.values() for parameter in network.parameters()) / 1e6
    return f"{type(pipeline).__name__}, {count:.1f} M parameters in {', '.join(sorted(networks))}"


def _forget(file: Path) -> None:
    """Take the path it was made from out of a config: `_name_or_path`, a folder of this machine."""
    content = read_json(file)
    if isinstance(content, dict) and "_name_or_path" in content:
        write_json(file, {key: value for key, value in content.items() if key != "_name_or_path"})


def _tensors(source: Path) -> Mapping[str, str]:
    """The kind of number of each tensor by its name, as safetensors calls it."""
    from safetensors import safe_open

    if source.suffix in PICKLES:
        raise CheckpointError(
            f"'{source}' is a pickle, which can run code when opened; give the same model as .safetensors"
        )
    if not source.is_file():
        raise CheckpointError(f"'{source}' is not there; give a .safetensors or .gguf file")
    if source.suffix == ".gguf":
        return {}
    try:
        with safe_open(source, "pt") as content:
            return {key: content.get_slice(key).get_dtype() for key in content.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(
            f"'{source}' is no whole safetensors file ({' '.join(str(error).split())[:100]}); fetch it again"
        ) from error


def _config_folder(config: str, whole: bool) -> Path:
    """The pipeline of `--config`; of a Hub id whose weights are not needed, its settings alone."""
    folder = local(config)
    if folder is not None:
        return folder
    return locate(config) if whole else fetched(config, SETTINGS)


def _read(source: Path, folder: Path, there: set[str], dtype: torch.dtype) -> Any:
    """The pipeline of the file: what it holds, and the other parts of `folder`."""
    import diffusers

    index = read_index(folder / "model_index.json")
    cls: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if not hasattr(cls, "from_single_file"):
        raise ConfigError(
            f"--config '{folder}' is a {index.get('_class_name')}, which diffusers reads from no single file; give a "
            f"pipeline folder of the architecture that '{source.name}' has"
        )
    part = "unet" if "unet" in index else "transformer"
    lacking = [name for name in index if _kind_of(name) not in (None, *there)]
    given: dict[str, Any] = {name: None for name in WITHOUT if name in index}
    for name in lacking:
        kind = class_of(folder, name, index[name]) if index[name] != [None, None] else None
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            given[name] = load_whole(kind, folder / name, dtype="own")
    options: dict[str, Any] = {"config": str(folder), "local_files_only": True, "torch_dtype": dtype}
    try:
        with quiet():
            if there:
                more = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
                return cls.from_single_file(str(source), **options, **given, **more)
            given[part] = _network(source, class_of(folder, part, index[part]), options | {"subfolder": part})
            return cls.from_pretrained(str(folder), local_files_only=True, **given)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # names and shapes that do not fit come as errors of any kind
        reason = " ".join(f"{error}".split())[:150]
        reason = "it lacks some of its weights" if "meta tensor" in reason else reason
        raise CheckpointError(_unfit(source, folder, reason)) from error


def _kind_of(name: str) -> str | None:
    """Which part of `OF_PART` a component of a pipeline belongs to."""
    return "text" if name.startswith("text_encoder") else "vae" if name == "vae" else None


def _network(source: Path, cls: Any, options: dict[str, Any]) -> Any:
    """The network of a file that holds nothing else; of a GGUF its weights unpacked, in bfloat16."""
    if source.suffix != ".gguf":
        return cls.from_single_file(str(source), **options)
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"'{source.name}' is read with the package gguf; pip install gguf")
    from diffusers import GGUFQuantizationConfig

    packed = GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    network = cls.from_single_file(
        str(source), **options | {"torch_dtype": torch.bfloat16}, quantization_config=packed
    )
    return network.dequantize()


def _unfit(source: Path, folder: Path, reason: str) -> str:
    return (
        f"'{source.name}' is damaged or no model of the architecture of '{folder}' ({reason}); give --config a "
        f"pipeline of its architecture"
    )
