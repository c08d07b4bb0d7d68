"""Memory of one distillation step of SDXL, counted on the meta device: nothing is allocated, nothing downloaded.

Counted are all weights (networks, the student's average, heads, text encoders, VAE), gradients, AdamW's moments, and
what autograd keeps at the end of a forward pass; with checkpointing that is the inputs of its blocks, and beside them
what the largest block keeps while computed anew. The meta device has attention's math kernel only, which keeps
matrices of tokens x tokens: another kernel keeps less. Not counted: what a single operation needs and frees again, and
the allocator's fragments. Grids decode outside of the step, when its activations and gradients are gone.

    python benchmarks/distillation_memory.py [--size 1024] [--rank 64]
"""

import argparse
from typing import Any

import torch
from alignment_memory import SDXL, kept, watched
from diffusers import UNet2DConditionModel
from torch import nn

from diffdistill.matching.discriminators import Head
from diffdistill.pipelines.text.lora import SharedWeights

# What DMD2's released configuration adapts (2405.14867).
DMD2_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
# Parameters of SDXL's two text encoders, in bfloat16, and of its VAE, in float32.
BESIDE = 2 * (123_060_480 + 694_659_840) + 4 * 83_653_863
GB = 1e9


def pass_bytes(call: Any, base: Any, size: int, rows: int, to_input: bool) -> int:
    """Bytes that a pass keeps with checkpointing, the largest block's computed anew among them.

    call: the network in one of its roles; to_input: the gradient goes to x_t, as in the Fisher forms and the heads'.
    """
    weights = {p.untyped_storage()._cdata for p in [*base.parameters(), *call.parameters()]}

    def run() -> tuple[int, dict[str, int]]:
        blocks: dict[str, int] = {}
        with kept(weights) as found, watched(base, found, blocks), torch.autocast("cpu", torch.bfloat16):
            x = torch.empty(rows, 4, size // 8, size // 8, dtype=torch.bfloat16, device="meta")
            texts = {"text_embeds": torch.empty(rows, 1280, dtype=torch.bfloat16, device="meta")}
            call(
                x.requires_grad_(to_input), torch.empty(rows, device="meta"),
                encoder_hidden_states=torch.empty(rows, 77, 2048, dtype=torch.bfloat16, device="meta"),
                added_cond_kwargs=texts | {"time_ids": torch.empty(rows, 6, device="meta")},
            )  # fmt: skip
        return sum(found.values()), blocks

    base.enable_gradient_checkpointing()
    held = run()[0]
    base.disable_gradient_checkpointing()
    return held + max(run()[1].values())


def size_of(parameters: Any) -> int:
    return sum(p.nbytes for p in parameters)


def lora_step(size: int, rank: int, heads: bool, fisher: bool) -> dict[str, float]:
    """GB: student and critic are adapters on the teacher's bfloat16 weights; one image in a pass.

    The most is kept in the student's turn: its own graph, that of the guided teacher (two rows) for a Fisher form and
    for heads on it, and the critic's for a Fisher form. A score gap without heads keeps the first alone.
    """
    with torch.device("meta"):
        base = UNet2DConditionModel(**SDXL).to(torch.bfloat16)
        shared = SharedWeights(base)
        student, critic = (shared.adapted(rank, None, DMD2_TARGETS) for _ in range(2))
        head = Head(1280, size // 32) if heads else nn.Identity()
    nn.Module.to(student, torch.bfloat16)  # as autocast sees it
    activations = pass_bytes(student, base, size, 1, to_input=False)
    if heads or fisher:
        activations += pass_bytes(base, base, size, 2, to_input=True)
    if fisher:
        activations += pass_bytes(student, base, size, 1, to_input=True)  # the critic's, of the same shape
    nn.Module.to(student, torch.float32)
    adapters = size_of([*student.parameters(), *critic.parameters()])
    trained = adapters + size_of(head.parameters())
    return {
        "weights": (size_of(base.parameters()) + BESIDE) / GB,
        "adapters, average and heads": (trained + size_of(student.parameters())) / GB,
        "gradients": trained / GB,
        "moments": 2 * trained / GB,
        "activations": activations / GB,
    }


def full_step(size: int) -> dict[str, float]:
    """GB: float32 copies of student and critic, their gradients and moments, the average, a bfloat16 teacher."""
    with torch.device("meta"):
        base = UNet2DConditionModel(**SDXL).to(torch.bfloat16)  # as autocast sees it
    one = 2 * size_of(base.parameters())
    return {
        "weights": (0.5 * one + 2 * one + one + BESIDE) / GB,
        "gradients": 2 * one / GB,
        "moments": 4 * one / GB,
        "activations": pass_bytes(base, base, size, 1, to_input=False) / GB,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=64)
    args = parser.parse_args()
    print(f"SDXL, {args.size} px, one image in a pass (micro_batch_size=1), checkpointing, bf16; GB")
    for name, found in (
        (f"LoRA of rank {args.rank}, score gap without heads", lora_step(args.size, args.rank, False, False)),
        (
            f"LoRA of rank {args.rank}, score gap and heads on the teacher",
            lora_step(args.size, args.rank, True, False),
        ),
        (f"LoRA of rank {args.rank}, Fisher form without heads", lora_step(args.size, args.rank, False, True)),
        ("all weights, score gap without heads", full_step(args.size)),
    ):
        parts = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
        print(f"{name}: {parts}; together {sum(found.values()):.1f}")
