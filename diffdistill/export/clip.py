"""CLIP's text encoders in a checkpoint: OpenAI's by the names of transformers, OpenCLIP's by its own."""

import re
from types import SimpleNamespace
from typing import Any

import torch

from diffdistill.export.source import State

WHOLE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
INSIDE = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
THREE = ("q", "k", "v")
SURPLUS = "text_model.embeddings.position_ids"  # which transformers makes by itself, and wrote earlier


def is_open_clip(config: dict[str, Any]) -> bool:
    """OpenAI's has an activation of its own; OpenCLIP's, of SD 2 and SDXL's second encoder, has plain GELU."""
    return config.get("hidden_act") == "gelu"


def wrapped(state: State) -> State:
    """By the names with `text_model.`, which some versions of transformers leave out."""
    bare = not any(name.startswith("text_model.") for name in state)
    named = {
        f"text_model.{name}" if bare and name != "text_projection.weight" else name: t for name, t in state.items()
    }
    return {name: tensor for name, tensor in named.items() if name != SURPLUS}


def to_open_clip(state: State) -> State:
    """The names of OpenCLIP: query, key and value in one matrix, the projection from the left."""
    converted: State = {}
    for name, tensor in state.items():
        match = INSIDE.fullmatch(name)
        if name in WHOLE:
            converted[WHOLE[name]] = tensor
        elif name == "text_projection.weight":
            converted["text_projection"] = tensor.T
        elif match is None:
            converted[name] = tensor
        elif match[2] in LAYER:
            converted[f"transformer.resblocks.{match[1]}.{LAYER[match[2]]}.{match[3]}"] = tensor
        elif match[2] == "self_attn.q_proj":
            parts = [state[name.replace(".q_proj.", f".{letter}_proj.")] for letter in THREE]
            converted[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
    return converted


def read_open_clip(original: State, config: dict[str, Any]) -> State:
    """The names and tensors that diffusers reads from it."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    prefix = "conditioner.embedders.1.model."
    like = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    found: State = convert_open_clip_checkpoint(like, {prefix + name: t for name, t in original.items()}, prefix)
    return found
