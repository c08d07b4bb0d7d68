"""A UNet2DConditionModel in the layout of its first release, as SD 1, SD 2 and SDXL checkpoints and ComfyUI have it.

The blocks are numbered through: `down_blocks.I.resnets.J` is `input_blocks.(1 + I (L + 1) + J).0`, L the layers of a
block, its attention `.1`; a block's downsampler is an input block of its own; an upsampler is the last part of the
block's last output block.
"""

import re
from typing import Any

from diffdistill.export.source import State

PREFIX = "model.diffusion_model."
WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def to_original(state: State, config: dict[str, Any]) -> State:
    """The same tensors by the names of the first release; a name that it does not have stays as it is."""
    return {renamed(name, state, config): tensor for name, tensor in state.items()}


def renamed(name: str, state: State, config: dict[str, Any]) -> str:
    """One name.

    >>> renamed("down_blocks.1.resnets.0.conv1.weight", {}, {"layers_per_block": 2})
    'input_blocks.4.0.in_layers.2.weight'
    """
    layer, _, end = name.rpartition(".")
    if layer in WHOLE:
        return f"{WHOLE[layer]}.{end}"
    if match := MIDDLE.fullmatch(name):
        kind, number, rest = match.groups()
        place = 2 * int(number) + (kind == "attentions")
        return f"middle_block.{place}.{_inside(kind, rest)}"
    match, layers = BLOCK.fullmatch(name), config["layers_per_block"]
    if match is None or not isinstance(layers, int):
        return name
    way, block, kind, number, rest = match.groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        attended = any(other.startswith(f"up_blocks.{block}.attentions.{layers}.") for other in state)
        return f"output_blocks.{first + layers}.{2 if attended else 1}.{rest}"
    at = first + int(number) + (1 if way == "down" else 0)
    return f"{'input' if way == 'down' else 'output'}_blocks.{at}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    part, _, end = rest.partition(".")
    return f"{RESNET.get(part, part)}.{end}" if kind == "resnets" else rest


def read_back(original: State, config: dict[str, Any]) -> State:
    """The names and tensors that diffusers reads from it."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    found: State = convert_ldm_unet_checkpoint({PREFIX + name: t for name, t in original.items()}, config)
    return found
