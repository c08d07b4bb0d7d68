"""Where the weights of a reward lie, and how they are read: safetensors, or pickles as plain data."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import PICKLES, expanded, is_hub_id, sha256
from diffdistill.loading import check_finite
from diffdistill.pickle_reader.source import read_pickle, read_safetensors


def transformers() -> Any:
    """The package, of version 4 or 5; ConfigError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("rewards from text and images need transformers: pip install 'diffdistill[text]'") from error
    return transformers


def features_of(output: Any) -> Tensor:
    """transformers 4 returns projected features, 5 an output whose `pooler_output` they are."""
    return output if isinstance(output, Tensor) else output.pooler_output


def fetched(reward: str, where: str | None, hub: str, files: list[str]) -> Path:
    """The folder `where`, `builtin:NAME`, or a snapshot of a Hub id, `hub` if None, with `files` (patterns).

    CheckpointError, saying which files of `hub` to put where, if it is neither.
    """
    if where is not None and is_builtin(where):
        return resolve_builtin(where)
    folder = expanded(where or hub)
    if folder.is_dir():
        return folder
    if not is_hub_id(where or hub):
        raise CheckpointError(
            f"there is no folder '{where or hub}' with the weights of the reward {reward}; give '{reward}:FOLDER', or "
            f"'{reward}:OWNER/NAME' of the Hub"
        )
    try:
        return snapshot(where or hub, files)
    except Exception as error:  # the Hub raises many kinds, offline included; all of them mean "not to be had"
        raise CheckpointError(
            f"the weights of the reward {reward} are not on this machine: '{where or hub}' is no folder and cannot be "
            f"fetched from the Hub ({type(error).__name__}); download {', '.join(files)} of {hub} and give "
            f"'{reward}:FOLDER'"
        ) from error


def beside(folder: Path, hub: str, files: list[str], present: Sequence[str]) -> Path:
    """`folder` if it has one of the files `present`, else a snapshot of `hub`; CheckpointError if that fails, too."""
    if any((folder / name).is_file() for name in present):
        return folder
    try:
        return snapshot(hub, files)
    except Exception as error:
        raise CheckpointError(
            f"'{folder}' has no {' or '.join(present)} and '{hub}' cannot be fetched from the Hub "
            f"({type(error).__name__}); download {', '.join(files)} of {hub} into the folder"
        ) from error


def snapshot(hub: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub, allow_patterns=files))


def find_file(reward: str, folder: Path, patterns: list[str]) -> Path:
    """The one file of `folder` that matches the first pattern that any does; CheckpointError if none does."""
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            raise CheckpointError(
                f"'{folder}' has {len(files)} files {pattern} and the reward {reward} reads one; move the others away"
            )
    raise CheckpointError(f"'{folder}' has no {' or '.join(patterns)} for the reward {reward}; put one there")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a `torch.save` file (or its `state_dict`), read as plain data."""
    if file.suffix not in PICKLES:
        return read_safetensors(file)
    content = read_pickle(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"'{file}' is no file of named tensors; give the weights as published, or safetensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def fill(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Give every tensor of `module` its value; CheckpointError, naming them, if one is missing, extra or misshapen."""
    expected = module.state_dict()
    wrong = [
        *(f"{name} is missing" for name in expected.keys() - tensors.keys()),
        *(f"{name} has no place" for name in tensors.keys() - expected.keys()),
        *(
            f"{name} is {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in expected.keys() & tensors.keys()
            if expected[name].shape != tensors[name].shape
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"'{file}' does not fit the network it should: {'; '.join(sorted(wrong)[:3])} ({len(wrong)} in all); "
            f"give the file as published"
        )
    module.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    check_finite(module, file)


def digest(files: list[Path]) -> str:
    """The first 12 digits of the SHA-256 of some files, in the order of their names: which weights scored."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256(file)) for file in sorted(files))).hexdigest()[:12]
