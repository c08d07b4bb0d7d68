"""Distilling a teacher that draws texts: latents and prompts, times of its scheduler, roles that may share weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffdistill.config.schema import Distill
from diffdistill.config.student import FIRST_LEVEL
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.last_layer import last_layer
from diffdistill.pipelines.network import clone_network
from diffdistill.pipelines.text.data import TextSet, text_data
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.lora import SharedWeights
from diffdistill.pipelines.text.quantize import quantized
from diffdistill.pipelines.text.schedule import shifted_times, text_schedule
from diffdistill.training.device import Device
from diffdistill.training.kinds.base import (
    Kind,
    Roles,
    check_checkpointing,
    check_noise_alone,
    names_model,
    no_text_start,
)
from diffdistill.training.monitors.texts import TextMonitor
from diffdistill.training.sharded.plan import may_shard


class Texts(Kind):
    def data(self, config: Distill, teacher: TextDenoiser) -> TextSet:
        return text_data(config, teacher)

    def start(self, config: Distill, teacher: TextDenoiser) -> None:
        if config.initialize_from is not None and names_model(config.initialize_from):
            raise ConfigError(no_text_start(config.initialize_from))

    def levels(self, config: Distill, teacher: TextDenoiser, start: Denoiser | None) -> tuple[float, ...]:
        student = config.student
        if student.levels is not None or student.sigma_init not in (None, FIRST_LEVEL):
            raise ConfigError(
                "student.levels and student.sigma_init are of networks in EDM's units; a text teacher has times: give "
                "student.timesteps, or leave all out"
            )
        times: Sequence[float] | None = student.timesteps
        if student.shift is not None:
            if times is not None:
                raise ConfigError("student.shift and student.timesteps both say the student's times; give one of them")
            times = shifted_times(teacher.adapter, teacher.process, student.steps, student.shift)
        levels = text_schedule(teacher.adapter, teacher.process, student.steps, times).levels
        if config.consistent and times is not None:  # the stock scheduler's own begin with noise
            check_noise_alone(levels[0], teacher, "leave student.timesteps and student.shift out")
        return levels

    def roles(
        self, config: Distill, teacher: TextDenoiser, about: dict[str, object], device: Device, start: Denoiser | None
    ) -> Roles:
        """Copies in float32, adapters on the teacher's own weights, which are in the precision of its passes."""
        check_checkpointing(config, teacher.network)
        if config.method.guidance_rescale and teacher.adapter.embeds_guidance:
            raise ConfigError(
                "method.guidance_rescale is of a guided and a conditional output, and this teacher is told its "
                "guidance and has one output; set it to 0"
            )
        teacher.adapter.place(torch.device(device.name), device.dtype)
        teacher.adapter.guidance = config.method.guidance_scale  # matters to networks that are told it
        shared = SharedWeights(teacher.network)
        settings = {"student": config.student.lora}
        if config.matching is not None:
            settings["critic"] = config.critic.lora
        copies: dict[str, Any] = {}
        for role in (role for role, lora in settings.items() if lora is None):
            # The second from the first: the teacher's own weights may be narrower.
            copies[role] = clone_network(next(iter(copies.values()), teacher.network), None, may_shard(config, device))
        half = None if config.exact else device.dtype
        nn.Module.to(teacher.network, half or torch.float32)
        if (last := last_layer(teacher.network)) is not None:
            last.float()
        if config.quantize is not None:
            quantized(teacher.network, config.quantize, device.name)
        networks = {
            role: copies[role] if lora is None else shared.adapted(lora.rank, lora.alpha, lora.targets)
            for role, lora in settings.items()
        }
        if config.gradient_checkpointing:
            teacher.network.enable_gradient_checkpointing(shared.checkpointed)
            for network in copies.values():
                network.enable_gradient_checkpointing()
        student = teacher.with_network(networks["student"], about).eval()
        return student, teacher.with_network(networks["critic"]) if "critic" in networks else None

    def monitor(self, config: Distill, data: TextSet, teacher: TextDenoiser) -> TextMonitor:
        return TextMonitor(config, data, teacher)
