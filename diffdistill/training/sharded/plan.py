"""What several processes share: which networks of a run are sharded, how, and what cannot be.

`auto` shards where the states of a process would not fit: per trained weight 4 bytes of it, 4 of its gradient and 8 of
AdamW's moments, 4 of the average; per frozen weight those it has. What the activations take is not known beforehand;
three quarters of the memory are left to the states.
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from diffdistill import devices, processes
from diffdistill.borrowed import borrowing, own
from diffdistill.config.schema import Run
from diffdistill.errors import ConfigError
from diffdistill.last_layer import last_layer
from diffdistill.machine import total_memory
from diffdistill.sharding import Sharding, how, shard
from diffdistill.training.device import Device
from diffdistill.training.flat import checksum
from diffdistill.training.sharded.gather import remember
from diffdistill.training.sharded.passes import watch

SHARE = 0.75  # of the memory, for the states
GRADIENT, MOMENTS = 4, 8  # bytes a trained weight, beside its own
ROLE = {"average": "student", "reference": "teacher", "network": "student"}  # as `parallel.shard` calls them


def problem_of(config: Run, device: Device | None = None) -> str | None:
    """What of a run cannot be sharded, and what to do; None: nothing. Known before anything is loaded."""
    count, batch = processes.size(), config.train_batch_size
    if batch % count:
        return (
            f"train_batch_size={batch} is no multiple of the {count} processes, which must all make as many passes; "
            f"give one"
        )
    if getattr(config, "update_in_backward", False):
        return "update_in_backward moves whole weights; set it to false"
    if getattr(getattr(config, "method", None), "smoothness", None) is not None:
        return (
            "method.smoothness differentiates twice, and sharded weights are there for one pass back; set it to null"
        )
    for place, settings in _optimizers(config):
        if getattr(settings, "name", "muon") != "adamw":
            name = getattr(settings, "name", "muon")
            return f"{place} is {name}, which sees whole weights; use adamw"
    if packed := getattr(config, "quantize", None):
        return f"quantize={packed} packs the frozen weights whole; set it to null"
    if config.parallel.activation_checkpointing and getattr(config, "gradient_checkpointing", False):
        return "gradient_checkpointing and parallel.activation_checkpointing do the same; set one to false"
    if config.parallel.activation_checkpointing and _adapted(config):
        return "parallel.activation_checkpointing forgets the role of an adapter; use gradient_checkpointing"
    half = device is not None and device.dtype == torch.bfloat16
    if config.parallel.param_dtype == "bfloat16" and device is not None and not half:
        return "parallel.param_dtype=bfloat16 is of passes in bfloat16; set mixed_precision=bf16, or leave it out"
    return None


def _optimizers(config: Any) -> Iterable[tuple[str, Any]]:
    """Those of the run, by the dotted names of their settings."""
    for place in (
        "optimizer", "student.optimizer", "critic.optimizer", "method.adversarial.optimizer",
        "student.regression.optimizer", "student.regression.muon", "student.consistency.optimizer",
        "student.consistency.muon",
    ):  # fmt: skip
        found = config
        for name in place.split("."):
            found = getattr(found, name, None)
        if found is not None:
            yield place, found


def _adapted(config: Any) -> bool:
    return any(
        getattr(section, "lora", None) is not None
        for section in (config, getattr(config, "student", None), getattr(config, "critic", None))
    )


def check_parallel(config: Run, device: Device) -> None:
    """ConfigError where `parallel.strategy=fsdp` asks for what cannot be."""
    if config.parallel.strategy == "fsdp" and (problem := problem_of(config, device)) is not None:
        raise processes.together_told(
            ConfigError(f"parallel.strategy=fsdp cannot be: {problem}, or set parallel.strategy=ddp")
        )


def may_shard(config: Run, device: Device) -> bool:
    """Whether networks may come to be sharded, and should wait in the CPU's memory until that is known."""
    return processes.size() > 1 and config.parallel.strategy != "ddp" and problem_of(config, device) is None


def home(config: Run, device: Device) -> torch.device:
    """Where networks are made: not yet on the device where they may have to be sharded to fit."""
    return torch.device("cpu") if may_shard(config, device) else torch.device(device.name)


def copying(config: Run, device: Device) -> Callable[[nn.Module], nn.Module]:
    """How a network's copies are made that begin as it does: in its memory where they may come to be sharded."""
    return borrowing if may_shard(config, device) else copy.deepcopy


class Plan:
    """The decision for one run; `strategy` is "ddp" or "fsdp", for the record.

    networks: by role, whole yet; each is trained unless it is frozen. encoders: of texts, by name, in their place.
    """

    def __init__(
        self,
        config: Run,
        device: Device,
        networks: Mapping[str, nn.Module | None],
        encoders: Mapping[str, nn.Module] | None = None,
    ):
        self.config, self.device, self.encoders = config, device, dict(encoders or {})
        self.networks = {role: network for role, network in networks.items() if network is not None}
        self.strategy = "fsdp" if self._wanted() else "ddp"

    def _wanted(self) -> bool:
        if not may_shard(self.config, self.device):
            return False
        if self.config.parallel.strategy == "fsdp":
            return True
        return bool(
            processes.most(
                state_bytes([*self.networks.values(), *self.encoders.values()]) > SHARE * memory_of(self.device.name)
            )
        )

    def shard(self, exact: Callable[[str], bool] = lambda role: False) -> None:
        """Shard what is to be; the rest goes to the device. exact: whether a role's passes are in float32.

        A network that several roles share is sharded once, as the first of them says.
        """
        if self.strategy == "ddp":
            for network in self.networks.values():
                own(network).to(self.device.name)
            return
        processes.agree({"weights": checksum({**self.networks, **self.encoders})})
        chosen = self.config.parallel.shard
        for name, encoder in self.encoders.items() if "text_encoders" in chosen else ():
            sharding = Sharding(torch.device(self.device.name), offload=self.config.parallel.cpu_offload)
            shard(encoder, sharding)
            watch(encoder, name, sharding)
        for role, network in self.networks.items():
            if how(network) is not None:
                continue
            if ROLE.get(role, role) not in chosen:
                own(network).to(self.device.name)
                continue
            sharding = self._sharding(role, network, exact(role))
            remember(network, role)
            shard(network, sharding, last_layer(network))
            watch(network, role, sharding)

    def _sharding(self, role: str, network: nn.Module, exact: bool) -> Sharding:
        settings = self.config.parallel
        wide = exact or role == "average" or settings.param_dtype == "float32"
        stored = {weight.dtype for weight in network.parameters()}
        half = None if wide or stored != {torch.float32} else self.device.dtype
        trained = any(weight.requires_grad for weight in network.parameters())
        return Sharding(
            torch.device(self.device.name),
            half,
            getattr(torch, settings.reduce_dtype),
            settings.cpu_offload,
            settings.activation_checkpointing and trained,
        )


def state_bytes(networks: Iterable[nn.Module]) -> int:
    """Of weights, gradients and AdamW's moments, of one process that holds all."""
    weights = {id(weight): weight for network in networks for weight in network.parameters()}
    return sum(
        weight.numel() * (weight.element_size() + (GRADIENT + MOMENTS if weight.requires_grad else 0))
        for weight in weights.values()
    )


def memory_of(device: torch.device) -> int:
    """Bytes that one process may have there."""
    if device.type in devices.KNOWN:
        return devices.total_memory(device)
    return total_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
