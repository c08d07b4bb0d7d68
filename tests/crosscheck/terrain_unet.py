"""The consistency UNet that PyPI's `adaptive-terrain-diffusion` ships as ONNX, as a stock diffusers pipeline folder.

The graph is the UNet of guided diffusion (2105.05233) with the preconditioning of consistency models (2303.01469)
around it: D = c_skip x + c_out F(c_in x, 250 ln sigma, difficulty), clamped to [-1, 1]. diffusers' `UNet2DModel` can
be that F: residual blocks that resample, an embedding that scales and shifts, attention with heads of 32 channels. One
input differs: the network reads a difficulty in [0, 1] through two linear layers, which are written out as a table of
the 100 difficulties that the package knows, `class_embedding`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import Tensor
from torch.nn import functional as F

PACKAGE, VERSION = "adaptive-terrain-diffusion", "0.4.2"
FILE = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
SHA256 = "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887"  # of that file
CLASSES, BLOCKS, ATTENDING = (
    100,
    4,
    3,
)  # difficulties; residual blocks a level; how many levels attend, from the lowest
CHANNELS = (32, 32, 64, 96, 128)

RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
AROUND = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip


def blank() -> UNet2DModel:
    """The architecture, weights yet to be filled in."""
    levels, plain = len(CHANNELS), len(CHANNELS) - ATTENDING
    return UNet2DModel(
        sample_size=128,
        in_channels=1,
        out_channels=1,
        block_out_channels=CHANNELS,
        layers_per_block=BLOCKS,
        down_block_types=("ResnetDownsampleBlock2D",) * plain + ("AttnDownBlock2D",) * ATTENDING,
        up_block_types=("AttnUpBlock2D",) * ATTENDING + ("ResnetUpsampleBlock2D",) * (levels - ATTENDING),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=32,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        num_class_embeds=CLASSES,
    )


def places() -> Iterator[tuple[str, str, dict[str, str]]]:
    """`(prefix in the graph, prefix in UNet2DModel, names below)` of every residual block and attention."""
    levels = len(CHANNELS)
    for level in range(levels):
        attends = level >= levels - ATTENDING
        for j in range(BLOCKS):
            here, there = f"input_blocks.{1 + (BLOCKS + 1) * level + j}", f"down_blocks.{level}"
            yield f"{here}.0", f"{there}.resnets.{j}", RESIDUAL
            if attends:
                yield f"{here}.1", f"{there}.attentions.{j}", ATTENTION
        if level < levels - 1:
            yield f"input_blocks.{(BLOCKS + 1) * (level + 1)}.0", f"down_blocks.{level}.downsamplers.0", RESIDUAL
    yield "middle_block.0", "mid_block.resnets.0", RESIDUAL
    yield "middle_block.1", "mid_block.attentions.0", ATTENTION
    yield "middle_block.2", "mid_block.resnets.1", RESIDUAL
    for level in range(levels):
        attends = level < ATTENDING
        for j in range(BLOCKS + 1):
            here, there = f"output_blocks.{(BLOCKS + 1) * level + j}", f"up_blocks.{level}"
            yield f"{here}.0", f"{there}.resnets.{j}", RESIDUAL
            if attends:
                yield f"{here}.1", f"{there}.attentions.{j}", ATTENTION
        if level < levels - 1:
            yield f"{here}.{2 if attends else 1}", f"{there}.upsamplers.0", RESIDUAL


def read_graph(file: Path) -> dict[str, Tensor]:
    """The weights by name. Group norms have lost theirs; each is named by the convolution that follows it."""
    import onnx
    from onnx import numpy_helper

    graph: Any = onnx.load(str(file)).graph
    constants = {t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer}
    found = {name.removeprefix("network."): t for name, t in constants.items() if name.startswith("network.")}
    followed = {"in_layers.2": "in_layers.0", "out_layers.3": "out_layers.0", "qkv": "norm", "out.2": "out.0"}
    affine: list[Tensor] = []  # the two constants that come after a normalisation: times the first, plus the second
    inside = False
    for node in graph.node:
        if node.op_type == "InstanceNormalization":
            assert [a.f for a in node.attribute] == [np.float32(1e-5)]
            assert torch.equal(constants[node.input[1]], torch.ones(32))  # 32 groups; the affine map comes after
            inside, affine = True, []
        elif inside and node.op_type in ("Mul", "Add") and node.input[1] in constants:
            affine.append(constants[node.input[1]].flatten())
            inside = len(affine) < 2
        elif node.op_type == "Conv" and affine:
            conv = node.input[1].removeprefix("network.").removesuffix(".weight")
            norm = next(conv.removesuffix(end) + start for end, start in followed.items() if conv.endswith(end))
            found[f"{norm}.weight"], found[f"{norm}.bias"] = affine
            affine = []
    return found


def class_table(weights: dict[str, Tensor]) -> Tensor:
    """`(100, 128)`: the embedding of difficulty k + 1, which the network is given as k / 99."""
    difficulty = (torch.arange(CLASSES, dtype=torch.float32) / (CLASSES - 1))[:, None]
    hidden = F.silu(F.linear(difficulty, weights["label_emb.0.weight"], weights["label_emb.0.bias"]))
    return F.linear(hidden, weights["label_emb.2.weight"], weights["label_emb.2.bias"])


def convert(file: Path) -> UNet2DModel:
    """The network of the graph; an error if a weight of either is left over."""
    weights = read_graph(file)
    state = {"class_embedding.weight": class_table(weights)}
    names = dict(AROUND)
    for here, there, below in places():
        names |= {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in below.items()}
        if below is ATTENTION:
            for kind in ("weight", "bias"):
                parts = weights.pop(f"{here}.qkv.{kind}").chunk(3)
                state |= {f"{there}.to_{name}.{kind}": part.squeeze() for name, part in zip("qkv", parts, strict=True)}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if not module.startswith("label_emb"):
            state[f"{names[module]}.{kind}"] = tensor.squeeze() if module.endswith("proj_out") else tensor
    network = blank()
    network.load_state_dict(state)  # strict: nothing missing, nothing unexpected
    return network.eval()


def write_folder(file: Path, folder: Path) -> None:
    """As diffusers writes it; the graph has sigma_min 0.002 and sigma_data 0.5 as constants, and clamps."""
    ConsistencyModelPipeline(convert(file), CMStochasticIterativeScheduler()).save_pretrained(folder)
