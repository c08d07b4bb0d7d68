"""A LoRA of a style or a subject on a text-to-image teacher before it is distilled: W + scale (alpha / r) B A.

diffusers reads it, in whatever spelling it knows (its own, peft's, kohya's). The factors are then taken out of the
layers it made, so that they can be added to weights that are read anew, and joined to those of a student's adapter.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import PICKLES, expanded, is_hub_id, sha256
from diffdistill.loading import quiet
from diffdistill.pipelines.folder import fetched, pinned

NAME = "task"  # of the adapter, while diffusers holds it
USUAL = "pytorch_lora_weights.safetensors"
OF_ENCODERS = ("text_encoder", "lora_te", "conditioner", "cond_stage_model")
DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_A.default.weight")


@dataclass(frozen=True)
class TaskLora:
    """factors: by a layer's name A `(r, in, ...)` and B `(out, r, ...)`, float32, with scale and alpha / r in B."""

    file: Path
    scale: float
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def change(self, name: str) -> Tensor:
        """What is added to the weight of a layer, in its shape."""
        down, up = self.factors[name]
        return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])

    @torch.no_grad()
    def add_to(self, network: Any) -> None:
        """Add it to the weights of a network, each rounded once, to the precision it is held in."""
        for name in self.factors:
            weight = network.get_submodule(name).weight
            weight.copy_(weight.float() + self.change(name).to(weight.device))

    def joined(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's tensors by the names of peft with this one's: B A + B' A' is one product of rank r + r'."""
        both = dict(tensors)
        for name, (down, up) in self.factors.items():
            keys = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            for dim, (key, own) in enumerate(zip(keys, (down, up), strict=True)):
                both[key] = torch.cat([both[key], own], dim).contiguous() if key in both else own.contiguous()
        return both

    def record(self) -> dict[str, Any]:
        return {"file": self.file.name, "sha256": sha256(self.file), "scale": self.scale}


def lora_file(name: str) -> Path:
    """The safetensors file of a LoRA: itself, the one in a folder, or in the top folder of a Hub id.

    Raises CheckpointError for a pickle, for what is neither, and for a folder with several or none.
    """
    path = expanded(name)
    if path.suffix in PICKLES:
        raise CheckpointError(f"teacher_lora '{name}' is a pickle, which can run code when opened; give safetensors")
    if path.is_file():
        return path
    if not path.is_dir():
        if not is_hub_id(pinned(name)[0]):
            raise CheckpointError(
                f"teacher_lora '{name:.200}' is not there; give a .safetensors file, a folder with one, or a Hub id "
                f"OWNER/NAME"
            )
        path = fetched(name, ["*.safetensors"], ignore=["*/*"])
    found = sorted(file for file in path.glob("*.safetensors"))
    usual = [file for file in found if file.name == USUAL]
    if len(usual or found) != 1:
        there = ", ".join(file.name for file in found[:3]) or "none"
        raise CheckpointError(f"teacher_lora '{name}' holds {there} as safetensors, and one is read; name the file")
    return (usual or found)[0]


def load_task_lora(adapter: Any, name: str, scale: float) -> TaskLora:
    """Read a LoRA for the network of `adapter` and add it to its weights; `adapter.task` has it from then on.

    Raises CheckpointError for one that is damaged, or of another network; ConfigError for one that changes text
    encoders too, for DoRA, and for a pipeline that takes none.
    """
    file = lora_file(name)
    count = _checked(file, name)
    pipeline, network = adapter.pipeline, adapter.network
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(f"teacher_lora is given, and {type(pipeline).__name__} takes no LoRA; leave it out")
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("teacher_lora needs peft: pip install 'diffdistill[text]'")
    try:
        with quiet():
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=NAME)
            factors = dict(_factors(network, scale))
    except Exception as error:  # each spelling has its own errors; all mean that it does not fit
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(_other(name, network, reason)) from error
    finally:
        with quiet():
            pipeline.unload_lora_weights()
    if len(factors) < count:
        raise CheckpointError(_other(name, network, f"of its {count} layers {len(factors)} are there"))
    network.requires_grad_(False)
    task = TaskLora(file, scale, factors)
    task.add_to(network)
    adapter.task = task
    return task


def _other(name: str, network: Any, reason: str) -> str:
    return (
        f"teacher_lora '{name}' does not fit the teacher's {type(network).__name__} ({reason}); give a LoRA that was "
        f"made for this model"
    )


def _checked(file: Path, name: str) -> int:
    """How many layers the file changes, by the names of its tensors."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as content:
            keys = list(content.keys())
            broken = next((key for key in keys if not content.get_tensor(key).float().isfinite().all()), None)
    except Exception as error:
        raise CheckpointError(
            f"teacher_lora '{name}' is no whole safetensors file ({' '.join(str(error).split())[:100]}); fetch it "
            f"again"
        ) from error
    if broken is not None:
        raise CheckpointError(f"teacher_lora '{name}' has NaN or infinite numbers ({broken:.80}); fetch it again")
    if any(key.startswith(OF_ENCODERS) for key in keys):
        raise ConfigError(
            f"teacher_lora '{name}' changes the text encoders too, which students share with their teacher unchanged; "
            f"give one of the network alone"
        )
    if any("dora_scale" in key or "magnitude" in key for key in keys):
        raise ConfigError(f"teacher_lora '{name}' is a DoRA, which also scales the weights themselves; give a LoRA")
    return sum(key.endswith(DOWN) for key in keys)


def _factors(network: Any, scale: float) -> Any:
    """`(name, (A, B))` of every layer that has the adapter, B scaled."""
    for name, layer in network.named_modules():
        if NAME in (getattr(layer, "lora_A", None) or ()):
            up = layer.lora_B[NAME]
            if up.bias is not None:
                raise ValueError(f"it has a bias at {name}")
            factor = scale * layer.scaling[NAME]
            down = layer.lora_A[NAME].weight.detach().float().cpu().clone()
            yield name, (down, factor * up.weight.detach().float().cpu())
