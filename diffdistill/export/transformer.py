"""The transformers of SD 3 and Flux in the layout of their first release, which ComfyUI has.

Query, key and value are one matrix there, and the last modulation has its shift before its scale. Others that ComfyUI
reads by the names of diffusers stay as they are.
"""

import re
from typing import Any

import torch

from diffdistill.export.source import State

FLUX_WIDTH = 3072
AS_THEY_ARE = ("PixArtTransformer2DModel", "AuraFlowTransformer2DModel", "ZImageTransformer2DModel")
"""Networks that ComfyUI reads by the names of diffusers."""

# A name's pattern and what takes its place; `{q}` stands for three tensors, which become one.
SD3 = (
    (r"pos_embed\.pos_embed", "pos_embed"),
    (r"pos_embed\.proj\.", "x_embedder.proj."),
    (r"time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
    (r"time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
    (r"transformer_blocks\.(\d+)\.(attn2?)\.to_q\.", r"joint_blocks.\1.x_block.\2.qkv."),
    (r"transformer_blocks\.(\d+)\.attn\.add_q_proj\.", r"joint_blocks.\1.context_block.attn.qkv."),
    (r"transformer_blocks\.(\d+)\.(attn2?)\.norm_([qk])\.", r"joint_blocks.\1.x_block.\2.ln_\3."),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_([qk])\.", r"joint_blocks.\1.context_block.attn.ln_\2."),
    (r"transformer_blocks\.(\d+)\.(attn2?)\.to_out\.0\.", r"joint_blocks.\1.x_block.\2.proj."),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out\.", r"joint_blocks.\1.context_block.attn.proj."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"joint_blocks.\1.x_block.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear\.", r"joint_blocks.\1.context_block.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"joint_blocks.\1.x_block.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"joint_blocks.\1.x_block.mlp.fc2."),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.", r"joint_blocks.\1.context_block.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2\.", r"joint_blocks.\1.context_block.mlp.fc2."),
    (r"norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"proj_out\.", "final_layer.linear."),
)
FLUX = (
    (r"time_text_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
    (r"time_text_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
    (r"time_text_embed\.text_embedder\.linear_1\.", "vector_in.in_layer."),
    (r"time_text_embed\.text_embedder\.linear_2\.", "vector_in.out_layer."),
    (r"time_text_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
    (r"time_text_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
    (r"context_embedder\.", "txt_in."),
    (r"x_embedder\.", "img_in."),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear\.", r"single_blocks.\1.modulation.lin."),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_q\.", r"single_blocks.\1.linear1."),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"single_transformer_blocks\.(\d+)\.proj_out\.", r"single_blocks.\1.linear2."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"double_blocks.\1.img_mod.lin."),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear\.", r"double_blocks.\1.txt_mod.lin."),
    (r"transformer_blocks\.(\d+)\.attn\.to_q\.", r"double_blocks.\1.img_attn.qkv."),
    (r"transformer_blocks\.(\d+)\.attn\.add_q_proj\.", r"double_blocks.\1.txt_attn.qkv."),
    (r"transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_q\.weight", r"double_blocks.\1.txt_attn.norm.query_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_k\.weight", r"double_blocks.\1.txt_attn.norm.key_norm.scale"),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0\.", r"double_blocks.\1.img_attn.proj."),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out\.", r"double_blocks.\1.txt_attn.proj."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"double_blocks.\1.img_mlp.0."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"double_blocks.\1.img_mlp.2."),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.", r"double_blocks.\1.txt_mlp.0."),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2\.", r"double_blocks.\1.txt_mlp.2."),
    (r"norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"proj_out\.", "final_layer.linear."),
)
# The others of a matrix of several, in their order after the query.
JOINED = {
    ".attn.to_q.": (".attn.to_k.", ".attn.to_v."),
    ".attn2.to_q.": (".attn2.to_k.", ".attn2.to_v."),
    ".attn.add_q_proj.": (".attn.add_k_proj.", ".attn.add_v_proj."),
}
FOLLOWS = re.compile(r"\.(to_[kv]|add_[kv]_proj|proj_mlp)\.")


def to_original(state: State, tables: tuple[tuple[str, str], ...]) -> State:
    """The tensors by the names of the first release; a name that it does not have stays as it is."""
    blocks = [int(match[1]) for name in state if (match := re.match(r"transformer_blocks\.(\d+)\.", name))]
    converted: State = {}
    for name, tensor in state.items():
        if FOLLOWS.search(name):
            continue
        tensor = torch.cat([tensor, *(state[other] for other in _joined(name))])
        if _turned(name, max(blocks, default=-1), tables):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        converted[_renamed(name, tables)] = tensor
    return converted


def _joined(name: str) -> list[str]:
    others = [name.replace(first, other) for first, rest in JOINED.items() if first in name for other in rest]
    single = name.startswith("single_transformer_blocks.") and others
    return [*others, name.replace("attn.to_q", "proj_mlp")] if single else others


def _turned(name: str, last: int, tables: tuple[tuple[str, str], ...]) -> bool:
    """Whether scale and shift have changed places: in the last layer, and in SD 3's last block of the text."""
    return name.startswith("norm_out.linear.") or (
        tables is SD3 and name.startswith(f"transformer_blocks.{last}.norm1_context.")
    )


def _renamed(name: str, tables: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in tables:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return name


def read_sd3(original: State, _config: dict[str, Any]) -> State:
    """The names and tensors that diffusers reads from it."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    found: State = convert_sd3_transformer_checkpoint_to_diffusers(original)
    return found


def read_flux(original: State, config: dict[str, Any]) -> State:
    """The names and tensors that diffusers reads from it; it knows one width, so that of others is cut here."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    width = config["num_attention_heads"] * config["attention_head_dim"]
    cut: State = {}
    for name in [name for name in original if ".linear1." in name and width != FLUX_WIDTH]:
        _, block, _, end = name.split(".")
        tensor = original[name]
        parts = tensor.split([width, width, width, len(tensor) - 3 * width])
        for layer, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True):
            cut[f"single_transformer_blocks.{block}.{layer}.{end}"] = part
        original[name] = tensor.new_zeros(7 * FLUX_WIDTH)
    found: State = convert_flux_transformer_checkpoint_to_diffusers(original)
    return found | cut
