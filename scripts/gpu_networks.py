"""What `gpu_check.py` measures with: networks of real size with random weights, cards and their peaks, a clock.

Nothing here is fetched: every network is built of its settings.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill import devices

Figures = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Figures]]]
# Most operations a second, in 1e12, dense: bfloat16, TF32, float32 without tensor cores. Of NVIDIA's data sheets,
# whose figures "with sparsity" are halved: A100 (2021), H100 (2023), H200 (2024), L40S, L4, A10.
PEAKS = {
    "H200": (989.5, 494.7, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100": (989.5, 494.7, 67.0),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "A10": (125.0, 62.5, 31.2),
}
KINDS = ("bfloat16", "tf32", "float32")


def peak_of(card: str, kind: str) -> float | None:
    """Operations a second that a card of this name could do; None where it is not in the table, as a part of a name
    that is (`A100` in `NVIDIA A100-SXM4-80GB`, but not `A10`).
    """
    words = card.replace("-", " ")
    for name, peaks in PEAKS.items():
        if f" {name} " in f" {words} " and (name != "H100" or "NVL" not in words):
            return peaks[KINDS.index(kind)] * 1e12
    return None


@dataclass
class Size:
    """A network and what it is called with. bare: `(network) -> output` on inputs of `batch` images."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.device, torch.dtype], tuple[tuple[Any, ...], dict[str, Any]]]
    batch: int
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    more: Figures = field(default_factory=dict)


def _normal(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


def cifar10(tiny: bool) -> Size:
    """EDM's network for CIFAR-10 (2206.00364, table 7: DDPM++, 55.7 million weights, 32x32)."""
    from diffdistill.models import SongUNet

    small: dict[str, Any] = {"sample_size": 8, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
    settings: dict[str, Any] = small | {"attn_resolutions": (4,)} if tiny else {"channel_mult": (2, 2, 2)}
    side = settings.get("sample_size", 32)

    def inputs(batch: int, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        labels = torch.arange(batch, device=device) % 10
        return (_normal(batch, 3, side, side, device=device, dtype=dtype), torch.ones(batch, device=device)), {
            "class_labels": labels,
            "return_dict": False,
        }

    classes = {"label_dim": 10, "num_class_embeds": 11}
    return Size("cifar10", lambda: SongUNet(**settings, **classes, dropout=0.0), inputs, 2 if tiny else 128, ("qkv",))


def sdxl(tiny: bool) -> Size:
    """The UNet of SDXL base 1.0 by its published settings (2307.01952): 2.57 billion weights, latents of 128x128."""
    from diffusers import UNet2DConditionModel

    width = (8, 16, 16) if tiny else (320, 640, 1280)
    text, pooled, ids, tokens = (16, 8, 8, 4) if tiny else (2048, 1280, 256, 77)
    side = 16 if tiny else 128

    def build() -> nn.Module:
        return UNet2DConditionModel(
            sample_size=side, block_out_channels=width, norm_num_groups=4 if tiny else 32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2, 2) if tiny else (5, 10, 20), cross_attention_dim=text,
            transformer_layers_per_block=1 if tiny else (1, 2, 10), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=ids,
            projection_class_embeddings_input_dim=pooled + 6 * ids,
        )  # fmt: skip

    def inputs(batch: int, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        added = {"text_embeds": _normal(batch, pooled, **where), "time_ids": _normal(batch, 6, **where)}
        images = _normal(batch, 4, side, side, **where), torch.full((batch,), 500.0, device=device)
        return (*images, _normal(batch, tokens, text, **where)), {"added_cond_kwargs": added, "return_dict": False}

    return Size("sdxl", build, inputs, 2)


def dit(tiny: bool) -> Size:
    """A transformer of the shape of SD3 medium's (2403.03206: 24 blocks, width 1536): 2.0 billion weights, 128x128."""
    from diffusers import SD3Transformer2DModel

    heads, depth, text, pooled, tokens, side = (2, 2, 16, 8, 4, 8) if tiny else (24, 24, 4096, 2048, 333, 128)
    width = 8 if tiny else 64

    def build() -> nn.Module:
        return SD3Transformer2DModel(
            sample_size=side, patch_size=2, in_channels=16, num_layers=depth, attention_head_dim=width,
            num_attention_heads=heads, joint_attention_dim=text, caption_projection_dim=heads * width,
            pooled_projection_dim=pooled, out_channels=16, pos_embed_max_size=side if tiny else 192,
        )  # fmt: skip

    def inputs(batch: int, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        images = (_normal(batch, 16, side, side, **where),)
        return images, {
            "encoder_hidden_states": _normal(batch, tokens, text, **where),
            "pooled_projections": _normal(batch, pooled, **where),
            "timestep": torch.full((batch,), 500.0, device=device),
            "return_dict": False,
        }

    return Size("dit_2b", build, inputs, 2 if tiny else 4, ("to_q", "to_k", "to_v", "to_out.0"))


@dataclass
class Clock:
    """Seconds and memory of work on a device: warmed up, then the median of some repeats."""

    device: torch.device
    repeats: int = 5
    warmup: int = 2

    def figures(self, work: Callable[[], Any], images: int = 0) -> Figures:
        for _ in range(self.warmup):
            work()
        devices.synchronize(self.device)
        devices.forget_peak(self.device)
        seconds = []
        for _ in range(self.repeats):
            began = time.perf_counter()
            work()
            devices.synchronize(self.device)
            seconds.append(time.perf_counter() - began)
        found: Figures = {"ms": 1e3 * statistics.median(seconds), "ms_least": 1e3 * min(seconds)}
        if peak := devices.peak_memory(self.device) if self.device.type in devices.KNOWN else 0:
            found["peak_gb"] = peak / 1e9
        if images:
            found["images_per_s"] = images / statistics.median(seconds)
        return found


def mfu(flops: int, ms: float, device: torch.device, kind: str) -> Figures:
    """Operations a second, and which part that is of what the card could do."""
    peak = peak_of(devices.name_of(device), kind) if device.type in devices.KNOWN else None
    rate = flops / (ms / 1e3)
    return {"tflop": flops / 1e12, "tflop_per_s": rate / 1e12, "mfu": "unknown" if peak is None else rate / peak}


def filled(size: Size, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network with random weights, which never were on the CPU."""
    with torch.device("meta"):
        network = size.build()
    network = nn.Module.to(network, dtype).to_empty(device=device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.02)
        for held in network.buffers():
            held.zero_()
    return network


def forget(device: torch.device) -> None:
    """Give back what a row left, so that the next begins with an empty card."""
    if device.type in devices.KNOWN:
        gc.collect()
        with contextlib.suppress(RuntimeError, NotImplementedError):
            torch.accelerator.empty_cache()


def autocast(device: torch.device, kind: str) -> AbstractContextManager[Any]:
    """bfloat16 passes; or float32."""
    if kind != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True)
class Look:
    """Where and how large; seconds: what a row may still take."""

    device: torch.device
    tiny: bool
    seconds: Callable[[], float]

    @property
    def clock(self) -> Clock:
        return Clock(self.device, 1 if self.tiny else 5, 1 if self.tiny else 2)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"


class Absent(Exception):
    """What a row needs is not on this machine."""
