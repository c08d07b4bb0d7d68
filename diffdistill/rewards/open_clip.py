"""Weights of open_clip in a transformers CLIPModel: HPSv2 is published as an open_clip file only."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import CheckpointError
from diffdistill.rewards.weights import fill, read_tensors, transformers


class Size(NamedTuple):
    """Of a CLIP: what the shapes of its weights do not tell."""

    vision_heads: int
    text_heads: int
    activation: str = "gelu"


VIT_H_14 = Size(vision_heads=16, text_heads=16)

# open_clip's names, in order: the first pattern that matches is replaced.
OUTER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # the spelling of transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
INNER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)\.?(weight|bias|in_proj_weight|in_proj_bias)$")
IGNORED = ("attn_mask",)  # the causal mask, which transformers makes itself


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors by the names of transformers: attention split in three, projections transposed."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name in IGNORED:
            continue
        if name in OUTER:
            result[OUTER[name]] = tensor
        elif name in PROJECTIONS:
            result[PROJECTIONS[name]] = tensor.T
        elif stem in NORMS:
            result[f"{NORMS[stem]}.{kind}"] = tensor
        elif match := BLOCK.fullmatch(name):
            tower, index, layer, kind = match.groups()
            block = f"{'vision' if tower else 'text'}_model.encoder.layers.{index}."
            if layer == "attn" and kind.startswith("in_proj_"):
                for part, values in zip("qkv", tensor.chunk(3), strict=True):
                    result[f"{block}self_attn.{part}_proj.{kind.removeprefix('in_proj_')}"] = values
            else:
                result[f"{block}{INNER.get(layer, layer)}.{kind}"] = tensor
        else:
            result[name] = tensor  # `fill` will say that it has no place
    return result


def clip_of_open_clip(file: Path, size: Size) -> Any:
    """A CLIPModel from an open_clip file (`.pt` read as plain data, or safetensors), float32.

    Widths, depths and lengths are read from the shapes. CheckpointError if a tensor is missing, extra or misshapen.
    """
    tensors = renamed(read_tensors(file))
    needed = [*OUTER.values(), *PROJECTIONS.values()]
    absent = [name for name in needed if name not in tensors]
    if absent:
        raise CheckpointError(f"'{file}' is no CLIP of open_clip: {absent[0]} is missing; give the file as published")
    package = transformers()
    with torch.device("meta"):
        model = package.CLIPModel(package.CLIPConfig(**configuration(tensors, size)))
    model = model.to_empty(device="cpu")
    for module in model.modules():  # what is no weight is not in the file: positions 0, 1, 2, ...
        if getattr(module, "position_ids", None) is not None:
            module.position_ids = torch.arange(module.position_ids.shape[-1]).expand(1, -1)
    fill(model, tensors, file)
    return model


def configuration(tensors: dict[str, Tensor], size: Size) -> dict[str, Any]:
    """The CLIPConfig of renamed tensors."""

    def depth(tower: str) -> int:
        return 1 + max(int(n.split(".")[3]) for n in tensors if n.startswith(f"{tower}_model.encoder.layers."))

    patch = tensors["vision_model.embeddings.patch_embedding.weight"]
    positions = len(tensors["vision_model.embeddings.position_embedding.weight"])
    words = tensors["text_model.embeddings.token_embedding.weight"]
    common = {"layer_norm_eps": 1e-5, "hidden_act": size.activation, "attention_dropout": 0.0}
    return {
        "projection_dim": len(tensors["visual_projection.weight"]),
        "vision_config": common | {
            "hidden_size": len(patch), "patch_size": patch.shape[-1], "num_attention_heads": size.vision_heads,
            "image_size": round((positions - 1) ** 0.5) * patch.shape[-1], "num_hidden_layers": depth("vision"),
            "intermediate_size": len(tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        },
        "text_config": common | {
            "hidden_size": words.shape[1], "vocab_size": len(words), "num_attention_heads": size.text_heads,
            "max_position_embeddings": len(tensors["text_model.embeddings.position_embedding.weight"]),
            "num_hidden_layers": depth("text"),
            "intermediate_size": len(tensors["text_model.encoder.layers.0.mlp.fc1.weight"]),
            # The text's feature is taken at the end token, the last of CLIP's vocabulary.
            "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2, "pad_token_id": len(words) - 1,
        },
    }  # fmt: skip
