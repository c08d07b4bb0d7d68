"""An AutoencoderKL in the layout of its first release: resolutions are numbered from the finest, attention is 1x1."""

import re
from typing import Any

from diffdistill.export.source import State

PREFIX = "first_stage_model."
BLOCK = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# Names before diffusers 0.18, which files of that time have.
ATTENTION |= {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}


def to_original(state: State, config: dict[str, Any]) -> State:
    """The same tensors by the names of the first release; weights of attention as convolutions of one pixel."""
    blocks = len(config["up_block_types"])
    converted: State = {}
    for name, tensor in state.items():
        new = renamed(name, blocks)
        pixel = ".attn_1." in new and tensor.dim() == 2
        converted[new] = tensor[:, :, None, None] if pixel else tensor
    return converted


def renamed(name: str, blocks: int) -> str:
    """One name, of a network of so many resolutions.

    >>> renamed("decoder.up_blocks.0.resnets.1.conv_shortcut.bias", 4)
    'decoder.up.3.block.1.nin_shortcut.bias'
    """
    name = name.replace("conv_norm_out", "norm_out")
    if match := MIDDLE.fullmatch(name):
        side, kind, number, rest = match.groups()
        if kind == "resnets":
            return f"{side}.mid.block_{int(number) + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        layer, _, end = rest.rpartition(".")
        return f"{side}.mid.attn_1.{ATTENTION.get(layer, layer)}.{end}"
    match = BLOCK.fullmatch(name)
    if match is None:
        return name
    side, way, block, kind, number, rest = match.groups()
    at = int(block) if way == "down" else blocks - 1 - int(block)
    if kind == "resnets":
        return f"{side}.{way}.{at}.block.{number}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    return f"{side}.{way}.{at}.{'downsample' if way == 'down' else 'upsample'}.{rest}"


def read_back(original: State, config: dict[str, Any]) -> State:
    """The names and tensors that diffusers reads from it."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    found: State = convert_ldm_vae_checkpoint({PREFIX + name: t for name, t in original.items()}, config)
    return found
