"""A LoRA of a model: the adapter that its run kept, or the best one of a rank for its difference from a base."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.export.formats import FULL, KEPT
from diffdistill.export.source import Source, State, denoiser_weights, load_tensors, skeleton
from diffdistill.files import sha256
from diffdistill.loading import named

WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LowRank:
    """By layer A `(r, in, ...)` and B `(out, r, ...)`: the layer's weight is the base's and B A.

    error: ||D - B A|| / ||D|| over all of the denoiser, D what it differs by; None where it was not compared.
    left_out: how many tensors differ that a LoRA cannot hold, biases and norms.
    """

    layers: dict[str, tuple[Tensor, Tensor]]
    error: float | None = None
    left_out: int = 0

    @property
    def rank(self) -> int:
        return max(len(down) for down, _ in self.layers.values())


def low_rank(source: Source, base: Source | None, rank: str | None) -> LowRank:
    """The LoRA that is asked for. base: the model it is laid over, where it is known and here.

    Raises ConfigError where neither an adapter was kept nor a rank is given, or for another base.
    """
    there = kept_file(source)
    if rank in (None, KEPT):
        if there is None:
            raise ConfigError(
                f"'{source.name}' kept no adapter, for it was trained whole or its folder has no lora/; give --rank N "
                f"for the closest LoRA of that rank, or --rank {FULL} for all of the difference"
            )
        adapter = LowRank(read_kept(there, source))
        return adapter if base is None else compared(adapter, source, base)
    if base is None:
        raise ConfigError(
            f"a LoRA of '{source.name}' is its difference from its base, and {_absent(source)}; give --base MODEL"
        )
    return extracted(source, base, None if rank == FULL else int(rank or 0))


def _absent(source: Source) -> str:
    teacher = source.record.get("teacher") or source.record.get("model")
    return f"its base '{teacher}' is not here" if teacher else "its record names none"


def kept_file(source: Source) -> Path | None:
    """The adapter in the folder of a student, or beside that of an aligned model, in its run."""
    places = [source.folder / "lora" / WEIGHTS]
    if source.record.get("role") == "aligned":
        places.append(source.folder.parent / "lora" / WEIGHTS)
    return next((place for place in places if place.is_file()), None)


def read_kept(file: Path, source: Source) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers of an adapter by the names of peft; CheckpointError for a damaged file, or of other names."""
    tensors = load_tensors(file)
    ending, layers = ".lora_A.weight", {}
    for name in tensors:
        if name.startswith(f"{source.part}.") and name.endswith(ending):
            up = tensors.get(name.replace(".lora_A.", ".lora_B."))
            if up is not None:
                layers[name.removeprefix(f"{source.part}.").removesuffix(ending)] = tensors[name], up
    if not layers or 2 * len(layers) != len(tensors):
        raise CheckpointError(f"'{file}' is no adapter of a {source.part} by the names of peft; make the model again")
    return layers


def extracted(source: Source, base: Source, rank: int | None) -> LowRank:
    """For every layer the product of that rank that is closest to its difference; None: to float32's rounding.

    B A = D V V^T with the first right singular vectors V of the difference D, an eigenproblem of the smaller side.
    The halves share the size, B = D V s^-1/2 and A = s^1/2 V^T, so that both fit into half precision.
    """
    state, other = _both(source, base)
    holds = adaptable(skeleton(source))
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    missed = total = 0.0
    left_out = 0
    for name, weight in state.items():
        difference = weight.double() - other[name].double()
        size = difference.square().sum().item()
        total += size
        layer = name.removesuffix(".weight")
        if size == 0:
            continue
        if layer not in holds or layer == name:
            left_out, missed = left_out + 1, missed + size
            continue
        least = rounding(weight) if rank is None else 0.0
        down, up = factors(difference.flatten(1), rank, least)
        if len(down) == 0:  # all of it is rounding
            missed += size
            continue
        missed += (difference.flatten(1) - up.double() @ down.double()).square().sum().item()
        kernel = difference.shape[2:]
        layers[layer] = (
            down.reshape(len(down), -1, *kernel).contiguous(), up.reshape(*up.shape, *[1] * len(kernel)).contiguous()
        )  # fmt: skip
    if not layers:
        raise ConfigError(
            f"no layer of '{source.name}' differs from '{base.name}', so there is no LoRA between them; name its "
            f"teacher as --base"
        )
    return LowRank(layers, math.sqrt(missed / total), left_out)


def factors(difference: Tensor, rank: int | None, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """A `(r, in)` and B `(out, r)`, float32, of a float64 `(out, in)`: B A is the closest of rank r at most.

    rank None: the fewest directions that leave a remainder of norm `least` at most.
    """
    wide = difference.shape[1] > difference.shape[0]
    matrix = difference.T if wide else difference  # the Gram matrix is of the smaller side
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rest = values.sum() - values.cumsum(0)  # what is left behind the first 1, 2, ... directions, squared
    count = rank if rank is not None else _fewest(values, rest, least)
    vectors = vectors[:, : min(count, int((values > values[0] * 1e-26).sum()))]
    images = matrix @ vectors
    root = images.norm(dim=0).clamp(min=1e-30).sqrt()
    left, right = (images / root).float(), (vectors * root).T.float()
    return (left.T.contiguous(), right.T.contiguous()) if wide else (right.contiguous(), left.contiguous())


def _fewest(values: Tensor, rest: Tensor, least: float) -> int:
    if values.sum().item() <= least**2:
        return 0
    return int((rest > least**2).sum().item()) + 1


def adaptable(network: nn.Module) -> set[str]:
    """Layers that a LoRA can be laid over: linear ones and convolutions of all channels."""
    return {
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }


def compared(adapter: LowRank, source: Source, base: Source) -> LowRank:
    """A kept adapter, checked against its base: ConfigError where the model is not that base and the adapter."""
    state, other = _both(source, base)
    missed = total = 0.0
    wrong = []
    for name, weight in state.items():
        difference = weight.double() - other[name].double()
        total += difference.square().sum().item()
        pair = adapter.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if pair is not None:
            down, up = pair
            difference -= (up.double().flatten(1) @ down.double().flatten(1)).reshape(difference.shape)
        size = difference.norm().item()
        missed += size**2
        if size > 4 * rounding(weight):
            wrong.append(name)
    if wrong:
        raise ConfigError(
            f"'{source.name}' is not '{base.name}' with its adapter ({named(wrong)} differ), so that LoRA would draw "
            f"something else there; name the teacher it was trained from as --base"
        )
    return LowRank(adapter.layers, math.sqrt(missed / total) if total else 0.0)


def _both(source: Source, base: Source) -> tuple[State, State]:
    """The denoisers' tensors of a model and of its base; ConfigError for a base of another build or other parts."""
    advice = "name the teacher it was trained from as --base"
    if source.network != base.network:
        raise ConfigError(f"'{base.name}' has a {base.network}, and '{source.name}' a {source.network}; {advice}")
    state, other = denoiser_weights(source), denoiser_weights(base)
    unlike = [name for name in sorted(state.keys() | other.keys()) if _shape(state, name) != _shape(other, name)]
    if unlike:
        raise ConfigError(f"'{base.name}' is not built as '{source.name}' is ({named(unlike)}); {advice}")
    for name in _shared_files(source, base):
        if not _same_numbers(source.folder / name, base.folder / name):
            raise ConfigError(
                f"'{base.name}' has another {name} than '{source.name}', so it is not its base; {advice}"
            )
    return state, other


def rounding(weight: Tensor) -> float:
    """The norm of what a weight's own precision leaves open, twice of what merging an adapter rounds away."""
    return float(torch.finfo(weight.dtype).eps) * weight.double().norm().item()


def _same_numbers(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors, but for the precision of the one that has less."""
    if sha256(one) == sha256(other):
        return True
    mine, theirs = load_tensors(one), load_tensors(other)
    return mine.keys() == theirs.keys() and all(_equal(mine[name], theirs[name]) for name in mine)


def _equal(one: Tensor, other: Tensor) -> bool:
    coarse = one.dtype if one.element_size() < other.element_size() else other.dtype
    return one.shape == other.shape and torch.equal(one.to(coarse), other.to(coarse))


def _shape(state: State, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _shared_files(source: Source, base: Source) -> list[str]:
    """Weights beside the denoiser that both folders have: a student has its teacher's, byte for byte."""
    files = sorted(file.relative_to(source.folder) for file in source.folder.glob("*/*.safetensors"))
    others = [file.as_posix() for file in files if file.parts[0] not in (source.part, "lora")]
    return [name for name in others if (base.folder / name).is_file()]
