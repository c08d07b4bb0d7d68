"""The model that is exported: its folder, checked; its denoiser's weights; and what they are in other files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import replacing
from diffdistill.loading import named, refuse_pickles, weight_files
from diffdistill.parts.scalelong import CONFIG_KEY
from diffdistill.pipelines.folder import locate, read_json, read_metadata
from diffdistill.pipelines.network import network_class, network_name
from diffdistill.pipelines.record import DECODERS, check_record

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A model folder whose record and digests are right. part: of the denoiser; kind: class of the pipeline."""

    name: str
    folder: Path
    index: dict[str, Any]
    record: dict[str, Any]
    part: str

    @property
    def kind(self) -> str:
        return str(self.index.get("_class_name"))

    @property
    def network(self) -> str:
        """The class of the denoiser."""
        return str(self.index[self.part][1])

    @property
    def draws_texts(self) -> bool:
        return any(name.startswith("text_encoder") for name in self.index)

    def config(self, part: str) -> dict[str, Any]:
        return read_json(self.folder / part / "config.json")

    def weights(self, part: str) -> State:
        return weights_in(self.folder / part)


def sampling_of(source: Source) -> dict[str, Any]:
    """What no file of weights holds: a student's levels, timesteps and call, and what the network predicts."""
    record, file = source.record, source.folder / "scheduler" / "scheduler_config.json"
    kept = {key: record[key] for key in ("levels", "timesteps", "scheduler", "call") if key in record}
    predicted = read_json(file).get("prediction_type") if file.is_file() else None
    return kept | ({"prediction_type": predicted} if predicted else {})


def open_source(name: str) -> Source:
    """MODEL for `export`; CheckpointError for what is no model folder, or a damaged one."""
    folder = locate(name)
    index = read_json(folder / "model_index.json")
    record = read_metadata(folder)
    try:
        part = network_name(index)
        check_record(record)
    except CheckpointError as error:
        raise CheckpointError(f"'{folder}': {error}") from error
    return Source(name, folder, index, record, part)


def weights_in(folder: Path) -> State:
    """All tensors of a network's folder, of one file or of shards; CheckpointError where there are none, or broken."""
    refuse_pickles(folder)
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"'{folder}' holds no safetensors weights; make or fetch the model again")
    found: State = {}
    for file in files:
        found |= load_tensors(file)
    return found


def load_tensors(file: Path) -> State:
    """The tensors of one safetensors file; CheckpointError where it is damaged."""
    from safetensors.torch import load_file

    try:
        found: State = load_file(file)
    except Exception as error:  # safetensors raises its own, and OSError
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"'{file}' cannot be read ({reason}); make or fetch the model again") from error
    return found


def skeleton(source: Source) -> nn.Module:
    """The denoiser without its numbers: what its layers are, and their shapes."""
    cls = network_class(source.network)
    if cls is None:
        raise CheckpointError(
            f"'{source.folder}' has the network class {source.network}, which this diffusers lacks; upgrade diffusers"
        )
    with torch.device("meta"):
        network: nn.Module = cls.from_config(source.config(source.part))
    return network


def denoiser_weights(source: Source) -> State:
    """The denoiser's tensors, which are those of its config, no more and no fewer, and numbers."""
    state, wanted = source.weights(source.part), skeleton(source).state_dict()
    wrong = sorted(set(state) ^ set(wanted)) or [n for n in wanted if state[n].shape != wanted[n].shape]
    if wrong:
        raise CheckpointError(
            f"the weights in '{source.folder / source.part}' are not those of its config.json ({named(wrong)}); make "
            f"or fetch the model again"
        )
    return state


def cast(state: State, dtype: str | None, where: object) -> State:
    """The numbers in a precision, contiguous and each in its own memory; whole numbers stay.

    CheckpointError where one becomes infinite, or was no number: such a file would draw black pictures.
    """
    kind = None if dtype is None else getattr(torch, dtype)
    return {name: cast_one(tensor, kind, f"{name} of '{where}'") for name, tensor in state.items()}


def cast_one(tensor: Tensor, kind: torch.dtype | None, what: str) -> Tensor:
    held = tensor if kind is None or not tensor.is_floating_point() else tensor.to(kind)
    if held.is_floating_point() and not bool(held.isfinite().all()):
        raise CheckpointError(
            f"{what} has numbers that are not finite{'' if kind is None else f' in {kind}'.replace('torch.', '')}; "
            f"export in bfloat16 or float32, or from before the training diverged"
        )
    return held.contiguous()


def refuse_scaled(source: Source, wish: str) -> None:
    """ConfigError for a network whose long skips are scaled: no other program knows of the scales."""
    if CONFIG_KEY in source.config(source.part):
        raise ConfigError(
            f"'{source.name}' has long skips that are scaled (ScaleLong), and a file of --format {wish} has no place "
            f"for the scales; fold them into the weights (remove_scalelong), or export --format diffusers"
        )


def refuse_decoders(source: Source, wish: str) -> None:
    """ConfigError for a student of several decoders: another program would make its image by one whole pass."""
    if DECODERS in source.record:
        raise ConfigError(
            f"'{source.name}' is drawn by several decoders of one encoder pass, and a file of --format {wish} has no "
            f"place for that; export --format diffusers"
        )


def write_tensors(file: Path, state: State, metadata: dict[str, str]) -> None:
    """One safetensors file, whole or not at all, that those may read who may read the user's other new files."""
    from safetensors.torch import save_file

    with replacing(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(state, partial, metadata={"format": "pt"} | metadata)
        partial.chmod(mode)  # safetensors leaves a file to its owner alone
