"""Low-rank adapters on a network of diffusers, through peft."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import ConfigError
from diffdistill.models.lora_targets import check_targets


def add_lora(network: Any, rank: int, targets: Sequence[str]) -> None:
    """Adapters of that rank, alpha = rank, on every layer whose name is a target or ends in `.target`; in float32.

    Only they are trainable then. Raises ConfigError for a target that matches nothing, and without peft.
    """
    check_targets(network, targets)
    check_peft()
    from peft import LoraConfig

    network.requires_grad_(False)
    network.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
    )
    for parameter in trainable(network):
        parameter.data = parameter.data.float()


def check_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "lora needs peft: pip install 'diffdistill[text]', or train all weights (lora=null)"
        ) from error


def trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def lora_tensors(network: Any) -> dict[str, Tensor]:
    """The adapters alone, by the names that `load_lora_weights` of diffusers reads."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    return convert_state_dict_to_diffusers(get_peft_model_state_dict(network))


@torch.no_grad()
def merged(network: Any, source: Path, rank: int, targets: Sequence[str]) -> Any:
    """The network of `source` in float32, W + B A where there are adapters; the trained one may hold W in half."""
    fresh = type(network).from_pretrained(source, use_safetensors=True)
    add_lora(fresh, rank, targets)
    for mine, theirs in zip(trainable(fresh), trainable(network), strict=True):
        mine.copy_(theirs)
    fresh.fuse_lora()
    fresh.unload_lora()
    return fresh
