"""Memory of a step of LoRA student and critic on one frozen base, counted on the meta device, part by part.

    python benchmarks/adapter_memory.py             the table of docs/scaling.md
    python benchmarks/adapter_memory.py --check     the activations of a small network on this CPU, against the formula

As in a run of `distill` with `quantize`: the base once, packed or in bfloat16; adapters of student, critic and average
in float32; moments of two; gradients of one at a time, for each is gone when the other's turn comes. Text encoders and
VAE rest in the CPU's memory but while they are at work, which is said beside, and encoded prompts take
`data.prompt_device_gb`. Activations are those of one pass at a time, for the student's turn is over when the critic's
begins: what it keeps, and the largest block computed anew; attention as of a fused kernel. A student of several steps
makes the others without a graph. Not counted: what an operation needs and frees again but for the largest layer
unpacked, and the allocator's fragments; leave a third for them.
"""

import argparse
import weakref
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from alignment_memory import kept, watched
from distillation_memory import DMD2_TARGETS
from scaling import BF16, GB, MODELS, Model, flux2_call, fused_attention, table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffdistill.pipelines.text.lora import SharedWeights
from diffdistill.pipelines.text.quantize import packed_layers

FLUX2_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "linear_in",
    "linear_out", "to_qkv_mlp_proj", "attn.to_out",
)  # fmt: skip
QWEN_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "img_mlp.net.0.proj",
    "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
TARGETS = {"sdxl": DMD2_TARGETS, "klein": FLUX2_TARGETS, "qwen": QWEN_TARGETS}
# Bytes a packed weight: NF4 with a scale for 64 weights, which are packed in 8 bits and have one of 32 for 256 of them
# (2305.14314, "double quantization"); a byte. A scale a row is left out.
PACKED = {"bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
PROMPTS = 1.0  # GB, data.prompt_device_gb
MOMENTS = {"adamw": 8, "adamw8bit": 2}  # bytes a trained weight


@dataclass(frozen=True)
class Adapted:
    """weights, packed: of the base, and of its layers that are packed; layer: the largest of those; adapter: weights
    of one; kept, block: bytes of an image's pass with checkpointing, and of the largest block computed anew."""

    weights: int
    packed: int
    layer: int
    adapter: int
    kept: int
    block: int


def built(model: Model, device: str = "meta") -> Any:
    with torch.device(device):
        return getattr(diffusers, model.network)(**model.settings).to(BF16)


def adapted(model: Model, rank: int, targets: tuple[str, ...]) -> Adapted:
    network = built(model)
    layers = [layer.weight.numel() for _, _, layer in packed_layers(network)]
    shared = SharedWeights(network)
    role = nn.Module.to(shared.adapted(rank, None, targets), BF16)  # as autocast sees it
    weights = {p.untyped_storage()._cdata for p in [*network.parameters(), *role.parameters()]}

    def pass_bytes() -> tuple[int, dict[str, int]]:
        each: dict[str, int] = {}
        with fused_attention(), kept(weights) as found, watched(network, found, each, model.blocks):
            role(**model.call(model.size, 1))
        return sum(found.values()), each

    network.train()
    block = max(pass_bytes()[1].values())
    network.enable_gradient_checkpointing(shared.checkpointed)
    return Adapted(
        sum(p.numel() for p in network.parameters()), sum(layers), max(layers),
        sum(p.numel() for p in role.parameters()), pass_bytes()[0], block,
    )  # fmt: skip


@cache
def of_table(key: str, rank: int) -> Adapted:
    return adapted(MODELS[key], rank, TARGETS[key])


def parts(key: str, base: str, rank: int = 64, optimizer: str = "adamw", rows: int = 1) -> dict[str, float]:
    """GB of each part in a step."""
    c = of_table(key, rank)
    found = {
        "base": 2 * (c.weights - c.packed) + PACKED[base] * c.packed,
        "unpacked": 0 if base == "bf16" else 2 * c.layer,
        "adapters": 3 * 4 * c.adapter,
        "gradients": 4 * c.adapter,
        "moments": 2 * MOMENTS[optimizer] * c.adapter,
        "activations": rows * (c.kept + c.block),
        "prompts": PROMPTS * GB,
    }
    return {name: value / GB for name, value in found.items()}


def beside(key: str) -> float:
    """GB of text encoders, in bfloat16, and VAE, in float32, while they are at work; activations are gone then."""
    return (2 * MODELS[key].texts + 4 * MODELS[key].vae) / GB


def rows_of_table(cases: list[tuple[str, str, str, str]]) -> str:
    names = list(parts("sdxl", "bf16"))
    rows = [["GB on one GPU, 1024 px", *names, "a step", "texts, VAE", "while they work"]]
    for title, key, base, optimizer in cases:
        found = parts(key, base, optimizer=optimizer)
        step = sum(found.values())
        resting = step - found["activations"] - found["gradients"]
        rows.append([
            title, *(f"{value:.1f}" for value in found.values()), f"{step:.1f}", f"{beside(key):.1f}",
            f"{resting + beside(key):.1f}",
        ])  # fmt: skip
    return table(rows)


CASES: list[tuple[str, str, str, str]] = [
    ("FLUX.2 klein 4B, bf16 base", "klein", "bf16", "adamw"),
    ("the same, int8", "klein", "int8", "adamw"),
    ("the same, nf4", "klein", "nf4", "adamw"),
    ("the same, nf4, adamw8bit", "klein", "nf4", "adamw8bit"),
    ("SDXL, bf16 base", "sdxl", "bf16", "adamw"),
    ("the same, nf4", "sdxl", "nf4", "adamw"),
    ("the same, nf4, adamw8bit", "sdxl", "nf4", "adamw8bit"),
    ("Qwen-Image 20B, bf16 base", "qwen", "bf16", "adamw"),
    ("the same, nf4, adamw8bit", "qwen", "nf4", "adamw8bit"),
]


class Alive(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are alive, and the most there ever were."""

    def __init__(self, known: set[int]):
        super().__init__()
        self.known, self.now, self.most = known, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def check(rank: int = 16) -> str:
    """Peak of a student's turn and a critic's, all tensors alive counted, and the formula."""
    settings = {"num_layers": 2, "num_single_layers": 6, "num_attention_heads": 6, "joint_attention_dim": 7680}
    small = Model("small", "Flux2Transformer2DModel", settings | {"guidance_embeds": False}, 512, flux2_call, 0,
                  MODELS["klein"].blocks)  # fmt: skip
    c = adapted(small, rank, FLUX2_TARGETS)
    network = built(small, "cpu").train()
    shared = SharedWeights(network)
    student, critic = (nn.Module.to(shared.adapted(rank, None, FLUX2_TARGETS), BF16) for _ in range(2))
    network.enable_gradient_checkpointing(shared.checkpointed)
    call = {name: torch.randn_like(value, device="cpu") for name, value in flux2_call(512, 1).items()}
    weights = [*network.parameters(), *student.parameters(), *critic.parameters()]
    with Alive({value.untyped_storage()._cdata for value in [*weights, *call.values()]}) as alive:
        x0 = student(**call).sample
        kept_once = alive.now
        x0.float().square().mean().backward()
        x0 = x0.detach()
        for p in student.parameters():
            p.grad = None
        critic(**call).sample.float().square().mean().backward()
    gradients = sum(p.grad.nbytes for p in critic.parameters() if p.grad is not None)
    formula = c.kept + c.block
    return (
        f"{c.weights / 1e6:.0f}e6 weights, {x0.shape[1]} tokens: a pass keeps {kept_once / 1e6:.1f} MB (counted "
        f"{c.kept / 1e6:.1f}); at most {alive.most / 1e6:.1f} MB, of it gradients {gradients / 1e6:.1f} (counted "
        f"{formula / 1e6:.1f} without them): {(alive.most - gradients) / formula:.2f} of the formula"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="measure a small network")
    print(check() if parser.parse_args().check else rows_of_table(CASES))
