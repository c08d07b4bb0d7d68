"""LoRA files: by the names of diffusers and peft, of kohya's trainer, and those that ComfyUI reads."""

import json
from typing import Any

import torch

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.export.formats import Wish
from diffdistill.export.low_rank import LowRank, low_rank
from diffdistill.export.source import Source, State, cast, open_source, sampling_of
from diffdistill.files import expanded, is_hub_id
from diffdistill.loading import named

COMFYUI = ("SD3Transformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel", "AuraFlowTransformer2DModel")
"""Transformers whose LoRA ComfyUI reads by the names of diffusers."""


def lora(source: Source, wish: Wish) -> tuple[State, dict[str, str], LowRank]:
    """The tensors and the metadata of a LoRA file, and what it is made of. ConfigError where there can be none."""
    if not source.draws_texts:
        raise ConfigError(
            f"'{source.name}' is a {source.kind}, for which no program loads a LoRA; export --format diffusers"
        )
    check_names(source, wish)
    base = base_of(source, wish.base)
    found = low_rank(source, base, wish.rank)
    state = {}
    for layer, (down, up) in found.layers.items():
        state[f"{source.part}.{layer}.lora_A.weight"], state[f"{source.part}.{layer}.lora_B.weight"] = down, up
    if wish.format == "kohya" or (wish.format == "comfyui" and source.part == "unet"):
        state = kohya(state)
    return cast(state, wish.dtype, source.name), metadata(source, base, found, wish), found


def check_names(source: Source, wish: Wish) -> None:
    """ConfigError where a program has no names for the layers of this denoiser."""
    if wish.format == "kohya" and source.part != "unet":
        raise ConfigError(
            f"'{source.name}' has a {source.network}, and diffusers writes kohya's names for UNets alone; "
            f"export --format lora"
        )
    if wish.format == "comfyui" and source.part != "unet" and source.network not in COMFYUI:
        raise ConfigError(
            f"'{source.name}' has a {source.network}, whose LoRA ComfyUI reads by names of its own; without --rank "
            f"the denoiser itself is written, or export --format lora"
        )


def base_of(source: Source, given: str | None) -> Source | None:
    """The model a LoRA is laid over: the one given, else the one in the record where it is a folder here.

    A Hub id in the record is left alone, for it may be many gigabytes: give it as --base to have it fetched.
    """
    if given is not None:
        return open_source(given)
    teacher = source.record.get("teacher") or source.record.get("model")
    if not isinstance(teacher, str) or is_hub_id(teacher):
        return None
    if not teacher.startswith("builtin:") and not (expanded(teacher) / "model_index.json").is_file():
        return None
    try:
        return open_source(teacher)
    except CheckpointError:
        return None


def kohya(state: State) -> State:
    """By the names of kohya's trainer, as diffusers converts them: A is `lora_down`, B `lora_up`, times alpha / rank.

    alpha is the largest rank in all layers, and B is scaled for it: where alphas differ, diffusers gives some layers
    the alpha of others. ConfigError where it would read other layers back.
    """
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    converted: State = convert_state_dict_to_kohya(state)
    lost = sorted(state.keys() ^ read_kohya(converted).keys())
    if lost:
        raise ConfigError(
            f"kohya's names cannot hold the layers of this LoRA, of which diffusers would read others back "
            f"({named(lost)}); export --format lora"
        )
    ranks = {name.removesuffix(".alpha"): int(tensor) for name, tensor in converted.items() if name.endswith(".alpha")}
    alpha = max(ranks.values())
    for layer, rank in ranks.items():
        converted[f"{layer}.lora_up.weight"] = converted[f"{layer}.lora_up.weight"] * (rank / alpha)
        converted[f"{layer}.alpha"] = torch.tensor(alpha)
    return converted


def read_kohya(state: State) -> State:
    """What diffusers reads from kohya's names, by those of peft."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    read, _alphas = _convert_non_diffusers_lora_to_diffusers(dict(state))
    found: State = convert_unet_state_dict_to_peft(read)
    return found


def metadata(source: Source, base: Source | None, found: LowRank, wish: Wish) -> dict[str, str]:
    """What the file says of itself: its base, its rank, and how the model is sampled, which no LoRA holds."""
    names = (wish.base, source.record.get("teacher"), source.record.get("model"), base and base.name, "unknown")
    known = [str(name) for name in names if name]
    plain = next((name for name in known if is_hub_id(name)), known[0].rstrip("/").rpartition("/")[2])
    about: dict[str, Any] = {
        "base_model": plain,
        "rank": found.rank,
        "relative_error": found.error,
        "sampling": sampling_of(source),
    }
    words = {"base_model": plain, "diffdistill": json.dumps(about, sort_keys=True)}
    if wish.format != "lora":
        words |= {
            "ss_sd_model_name": plain, "ss_network_module": "networks.lora", "ss_network_dim": str(found.rank),
            "ss_network_alpha": str(float(found.rank)),
        }  # fmt: skip
    return words
