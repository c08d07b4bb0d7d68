"""Memory of one aligning step of SDXL, counted on the meta device: nothing is allocated, nothing downloaded.

Counted are weights, gradients, the optimiser's state and what autograd keeps at the end of the forward pass; with
checkpointing that is the inputs of its blocks, and beside them what the largest block keeps while computed anew. The
meta device has attention's math kernel only, which keeps matrices of tokens x tokens: another kernel keeps less. Not
counted: what a single operation needs and frees again, the VAE, the text encoders and the allocator's fragments.

    python benchmarks/alignment_memory.py [--size 1024] [--pairs 1]
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffdistill.pipelines.text.lora import SharedWeights

SDXL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@contextlib.contextmanager
def kept(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of the distinct tensors that autograd keeps, without those in the storages `weights`: a linear layer keeps
    a view of its weight.
    """
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in found:
            found[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # or its place could be given to another one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def adamw(weight: Tensor) -> int:
    """Bytes of both moments."""
    return 2 * weight.nbytes


def adafactor(weight: Tensor) -> int:
    """Bytes of the means over rows and columns, a kernel being a matrix; of the second moment, for vectors."""
    if weight.ndim < 2:
        return weight.nbytes
    return weight.nbytes // len(weight) + len(weight) * weight.element_size()


@dataclass(frozen=True)
class Setting:
    """What is trained, and how; in_backward: each weight moves as soon as its gradient is known."""

    name: str
    dtype: torch.dtype
    lora: bool = False
    checkpointing: bool = True
    state: Callable[[Tensor], int] = adamw
    in_backward: bool = False


SETTINGS = (
    Setting("LoRA, bf16 base, checkpointing, AdamW", torch.bfloat16, lora=True),
    Setting("LoRA, bf16 base, AdamW", torch.bfloat16, lora=True, checkpointing=False),
    Setting("all weights, float32, checkpointing, AdamW", torch.float32),
    Setting("all weights, float32, checkpointing, Adafactor", torch.float32, state=adafactor),
    Setting("the same, updated in the backward pass", torch.float32, state=adafactor, in_backward=True),
)


def count(setting: Setting, size: int, pairs: int) -> dict[str, float]:
    """GB of one step: weights, of those trained the gradients and the optimiser's state, and kept activations."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**SDXL)
    nn.Module.to(network, setting.dtype)
    trained, extra = list(network.parameters()), 0
    if setting.lora:
        shared = SharedWeights(network)
        shared.active = shared.adapted(8, None, ("to_q", "to_k", "to_v", "to_out.0")).low_rank
        trained = list(shared.active.parameters())
        extra = sum(p.nbytes for p in trained)
    if setting.checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    activations = forward_bytes(network, setting.dtype, size, 2 * pairs)[0]
    if setting.checkpointing:
        network.disable_gradient_checkpointing()
        activations += forward_bytes(network, setting.dtype, size, 2 * pairs)[1]
    gb = {
        "weights": sum(p.nbytes for p in network.parameters()) + extra,
        "gradients": (max if setting.in_backward else sum)(p.nbytes for p in trained),
        "state": sum(setting.state(p) for p in trained),
        "activations": activations,
    }
    return {name: value / 1e9 for name, value in gb.items()}


def forward_bytes(network: Any, dtype: torch.dtype, size: int, rows: int) -> tuple[int, int]:
    """Bytes kept by a pass, and by the block that keeps most."""
    blocks: dict[str, int] = {}

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    extra = {"text_embeds": meta(rows, 1280), "time_ids": meta(rows, 6)}
    with kept(weights) as found, watched(network, found, blocks), torch.autocast("cpu", torch.bfloat16):
        network(
            meta(rows, 4, size // 8, size // 8), torch.empty(rows, device="meta"),
            encoder_hidden_states=meta(rows, 77, 2048), added_cond_kwargs=extra,
        )  # fmt: skip
    return sum(found.values()), max(blocks.values())


@contextlib.contextmanager
def watched(
    network: nn.Module, found: dict[int, int], blocks: dict[str, int],
    kinds: Sequence[str] = ("ResnetBlock2D", "BasicTransformerBlock"),
) -> Iterator[None]:  # fmt: skip
    """What each block that checkpointing computes anew, of the classes `kinds`, adds to `found`, into `blocks`."""
    handles = []
    for name, module in network.named_modules():
        if type(module).__name__ in kinds:

            def before(*_: Any, name: str = name) -> None:
                blocks[name] = -sum(found.values())

            def after(*_: Any, name: str = name) -> None:
                blocks[name] += sum(found.values())

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=1)
    args = parser.parse_args()
    print(f"SDXL, {args.size} px, {args.pairs} pair(s) a call, GB")
    for setting in SETTINGS:
        found = count(setting, args.size, args.pairs)
        total = sum(found.values())
        parts = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
        reference = 0.0 if setting.lora else found["weights"]
        ratio = total / (total + reference)
        print(f"{setting.name}: {parts}; MaPO {total:.2f}, Diffusion-DPO {total + reference:.2f}, ratio {ratio:.3f}")
