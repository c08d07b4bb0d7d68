"""Whole-model DMD2 over several GPUs: memory and communication of each, counted on the meta device, part by part.

    python benchmarks/scaling.py                    the tables of docs/scaling.md
    python benchmarks/scaling.py --model klein --gpus 2 --rows 1    one case, part by part

Nothing is allocated or downloaded, and none of this has run on a GPU: the networks are built with the published
settings, weights are counted, and what autograd keeps is seen by its hooks during a pass. `parallel.strategy=fsdp`
shards what a run holds evenly; whole at one time are the weights outside of blocks and two blocks (one computes, the
next one comes), in bfloat16, and in a backward pass the gradients of a block, in bfloat16 and in float32 as they are
summed. Text encoders and VAE are whole on every GPU unless `parallel.shard` names the former. Activations are those of
checkpointing: the inputs of the blocks, and what the largest block keeps while computed anew, with an attention that
keeps its inputs, its output and one number a row. Not counted: what an operation needs and frees again, buffers of
NCCL, the allocator's fragments; leave a tenth of the memory for them.
"""

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch
from alignment_memory import SDXL, kept, watched
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffdistill.sharding import blocks_of

GB = 1e9
TRAINED = 16  # bytes a weight: itself, gradient, AdamW's two moments, float32
AVERAGE, TEACHER = 4, 2  # float32; bfloat16
CRITIC_UPDATES = 5  # DMD2's, a student's update (2405.14867)
# Dense bfloat16 of an H100, of which 40 % are taken to be reached; NVLink within a machine and a network of 400 Gb/s
# between machines, a GPU and direction; all from their makers' data sheets.
FLOPS, REACHED, NVLINK, NETWORK = 989e12, 0.4, 450e9, 50e9
BF16 = torch.bfloat16


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def unet_call(size: int, rows: int, width: int, added: bool) -> dict[str, Any]:
    call = {
        "sample": meta(rows, 4, size // 8, size // 8), "timestep": meta(rows),
        "encoder_hidden_states": meta(rows, 77, width),
    }  # fmt: skip
    return call | (
        {"added_cond_kwargs": {"text_embeds": meta(rows, 1280), "time_ids": meta(rows, 6)}} if added else {}
    )


def sd3_call(size: int, rows: int) -> dict[str, Any]:
    return {
        "hidden_states": meta(rows, 16, size // 8, size // 8), "timestep": meta(rows),
        "encoder_hidden_states": meta(rows, 333, 4096), "pooled_projections": meta(rows, 2048),
    }  # fmt: skip


def flux2_call(size: int, rows: int) -> dict[str, Any]:
    tokens = (size // 16) ** 2
    return {
        "hidden_states": meta(rows, tokens, 128), "timestep": meta(rows),
        "encoder_hidden_states": meta(rows, 512, 7680),
        "img_ids": meta(tokens, 4, dtype=torch.float32), "txt_ids": meta(512, 4, dtype=torch.float32),
    }  # fmt: skip


def qwen_call(size: int, rows: int) -> dict[str, Any]:
    side = size // 16
    return {
        "hidden_states": meta(rows, side * side, 64), "timestep": meta(rows),
        "encoder_hidden_states": meta(rows, 512, 3584), "img_shapes": [[(1, side, side)]] * rows,
        "encoder_hidden_states_mask": None,
    }  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A published network. texts: parameters of its text encoders; vae: of its VAE; blocks: what is sharded and
    computed anew as one."""

    title: str
    network: str
    settings: dict[str, Any]
    size: int
    call: Callable[[int, int], dict[str, Any]]
    texts: float
    blocks: tuple[str, ...]
    vae: float = 0.084e9


UNET_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
SD15: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), "cross_attention_dim": 768,
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), "layers_per_block": 2, "attention_head_dim": 8,
}  # fmt: skip
SD35: dict[str, Any] = {
    "sample_size": 128, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
    "qk_norm": "rms_norm", "pos_embed_max_size": 192,
}  # fmt: skip
KLEIN: dict[str, Any] = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
    "guidance_embeds": False,
}  # fmt: skip
MODELS = {
    "sd15": Model(
        "SD 1.5", "UNet2DConditionModel", SD15, 512, lambda s, r: unet_call(s, r, 768, False), 0.123e9, UNET_BLOCKS
    ),
    "sdxl": Model(
        "SDXL", "UNet2DConditionModel", SDXL, 1024, lambda s, r: unet_call(s, r, 2048, True), 0.818e9, UNET_BLOCKS
    ),
    "sd35": Model(
        "SD 3.5 large", "SD3Transformer2DModel", SD35, 1024, sd3_call, 5.58e9, ("JointTransformerBlock",)
    ),
    "klein": Model(
        "FLUX.2 klein 4B", "Flux2Transformer2DModel", KLEIN, 1024, flux2_call, 4.02e9,
        ("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    ),
    "qwen": Model(
        "Qwen-Image", "QwenImageTransformer2DModel", {}, 1024, qwen_call, 8.29e9, ("QwenImageTransformerBlock",),
        0.127e9,
    ),
}  # fmt: skip


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps: its inputs, its output and the logarithm of each row's sum (2205.14135)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    math = nn.functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return FusedAttention.apply(query, key, value)

    nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = math


@dataclass(frozen=True)
class Counted:
    """Of a network: weights, those that are gathered together, and of one image the operations of a forward pass, the
    bytes kept with checkpointing and those of the largest block computed anew."""

    weights: int
    blocks: list[int] = field(default_factory=list)
    flops: float = 0.0
    kept: int = 0
    block: int = 0

    @property
    def rest(self) -> int:
        return self.weights - sum(self.blocks)


def groups_of(network: nn.Module) -> list[int]:
    """Weights of each block that is sharded by itself, without those of the blocks within it."""
    owner = {id(p): number for number, block in enumerate(blocks_of(network)) for p in block.parameters()}
    sizes = Counter(dict.fromkeys(owner.values(), 0))
    for weight in network.parameters():
        if id(weight) in owner:
            sizes[owner[id(weight)]] += weight.numel()
    return list(sizes.values())


def whole_at_a_time(blocks: list[int], rest: int, weight: int = 2) -> int:
    """Bytes beside what is sharded: weights outside of blocks and of two blocks, `weight` bytes each, and in a
    backward pass a block's gradients, alike and in float32 to be summed (one and the same where they are float32)."""
    sums = 4 if weight == 4 else weight + 4
    return weight * (rest + sum(sorted(blocks)[-2:])) + sums * max(blocks)


@cache
def counted(key: str) -> Counted:
    model = MODELS[key]
    with torch.device("meta"):
        network: Any = getattr(diffusers, model.network)(**model.settings).to(BF16)
    call = model.call(model.size, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**call)
    network.requires_grad_(True).train()
    weights = {p.untyped_storage()._cdata for p in network.parameters()}

    def kept_bytes() -> tuple[int, dict[str, int]]:
        each: dict[str, int] = {}
        with fused_attention(), kept(weights) as found, watched(network, found, each, model.blocks):
            network(**call)
        return sum(found.values()), each

    largest = max(kept_bytes()[1].values())
    network.enable_gradient_checkpointing()
    return Counted(
        sum(p.numel() for p in network.parameters()),
        groups_of(network),
        counter.get_total_flops(), kept_bytes()[0], largest,
    )  # fmt: skip


def parts(
    key: str, gpus: int, rows: int = 1, *, texts_sharded: bool = False, offload: bool = False
) -> dict[str, float]:
    """GB of each part on one GPU of `gpus`, with `rows` images in a pass; offload: `parallel.cpu_offload`."""
    model, c = MODELS[key], counted(key)
    here = 0 if offload else 1 / gpus
    return {
        part: value / GB
        for part, value in {
            "student": TRAINED * c.weights * here,
            "average": AVERAGE * c.weights * here,
            "critic": TRAINED * c.weights * here,
            "teacher": TEACHER * c.weights * here,
            "texts, VAE": 2 * (model.texts * (here if texts_sharded else 1) + model.vae),
            "whole at a time": whole_at_a_time(c.blocks, c.rest) if gpus > 1 else 0,
            "activations": rows * (c.kept + c.block),
        }.items()
    }


def traffic(key: str, gpus: int) -> tuple[float, float]:
    """Bytes that a GPU sends in one step, of fsdp and of ddp: a student's update and its critic's.

    A pass gathers weights (2 bytes each), a backward pass gathers them again and sums gradients (4). The student has
    one pass forward and one back; teacher and critic are asked once for its gradient; the critic has both a update.
    A ring sends (N - 1) / N of what is gathered or scattered, and twice that where all sum.
    """
    c, updates = counted(key), 1 + CRITIC_UPDATES
    ring = (gpus - 1) / gpus * c.weights
    return (2 * (2 * updates + 2) + 4 * updates) * ring, 2 * 4 * updates * ring


def step_flops(key: str) -> float:
    """Operations an image and step: a backward pass is two forward ones, and checkpointing adds one; guidance asks
    the teacher twice."""
    return counted(key).flops * (4 * (1 + CRITIC_UPDATES) + 2 + 1)


def least_batch(key: str, gpus: int, rate: float) -> float:
    """Images a GPU from which computing takes longer than sending, where both go on at once."""
    return traffic(key, gpus)[0] / rate / (step_flops(key) / (FLOPS * REACHED))


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---", *["---:"] * (len(head) - 1)], *body])


def networks() -> str:
    rows = [["", "size", "weights, 1e9", "largest block, 1e6", "forward, 1e12", "kept an image, GB", "state, GB"]]
    for key, model in MODELS.items():
        c = counted(key)
        rows.append([
            model.title, str(model.size), f"{c.weights / 1e9:.2f}", f"{max(c.blocks) / 1e6:.0f}",
            f"{c.flops / 1e12:.1f}", f"{(c.kept + c.block) / GB:.2f}",
            f"{c.weights * (2 * TRAINED + AVERAGE + TEACHER) / GB:.0f}",
        ])  # fmt: skip
    return table(rows)


def on_gpus(counts: tuple[int, ...]) -> str:
    rows = [["GB on each of", *map(str, counts)]]
    for key, model in MODELS.items():
        rows.append([model.title, *(f"{sum(parts(key, n).values()):.1f}" for n in counts)])
    return table(rows)


def part_by_part(cases: list[tuple[str, str, int, dict[str, Any]]]) -> str:
    names = list(parts("sd15", 2))
    rows = [["GB on one GPU", *names, "all"]]
    for title, key, gpus, settings in cases:
        found = parts(key, gpus, **settings)
        rows.append([title, *(f"{found[name]:.1f}" for name in names), f"{sum(found.values()):.1f}"])
    return table(rows)


def sent(gpus: int) -> str:
    rows = [["", "fsdp, GB", "ddp, GB", "compute an image, s", "images a GPU, NVLink", "images a GPU, network"]]
    for key, model in MODELS.items():
        fsdp, ddp = traffic(key, gpus)
        rows.append([
            model.title, f"{fsdp / GB:.0f}", f"{ddp / GB:.0f}", f"{step_flops(key) / (FLOPS * REACHED):.2f}",
            f"{least_batch(key, gpus, NVLINK):.1f}", f"{least_batch(key, gpus, NETWORK):.1f}",
        ])  # fmt: skip
    return table(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="one case, part by part")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1, help="images of a GPU's (micro) batch")
    args = parser.parse_args()
    if args.model:
        print(part_by_part([(MODELS[args.model].title, args.model, args.gpus, {"rows": args.rows})]))
    else:
        cases: list[tuple[str, str, int, dict[str, Any]]] = [
            ("FLUX.2 klein 4B on 2", "klein", 2, {}),
            ("the same, text encoders sharded", "klein", 2, {"texts_sharded": True}),
            ("the same, cpu_offload", "klein", 2, {"texts_sharded": True, "offload": True}),
            ("FLUX.2 klein 4B on 4", "klein", 4, {"texts_sharded": True}),
            ("SDXL on 4", "sdxl", 4, {}),
            ("the same, cpu_offload", "sdxl", 4, {"offload": True}),
            ("SDXL on 8", "sdxl", 8, {}),
        ]
        from adapter_memory import CASES, rows_of_table  # which counts with what is above

        tables = networks(), on_gpus((1, 2, 4, 8, 16, 32, 64)), part_by_part(cases), sent(64), rows_of_table(CASES)
        print(*tables, sep="\n\n")
