"""Training a teacher: denoising score matching (2206.00364, Table 1), from scratch or from a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from diffdistill import processes
from diffdistill.config.networks import Network
from diffdistill.config.parts import Noise
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.files import reason_of
from diffdistill.loss_weights import check_law, get_loss_weight
from diffdistill.losses import denoising_loss, native_weight
from diffdistill.matching.micro_batches import Metrics, rows_of
from diffdistill.models import UViT, apply_scalelong
from diffdistill.noise_law import KEY, NoiseLaw
from diffdistill.process import EDM, Level, LevelLaw, per_sample
from diffdistill.section import plain
from diffdistill.training.attention import Networks, layers_of
from diffdistill.training.device import Device
from diffdistill.training.flat import Parts
from diffdistill.training.optim.updater import Ema, Updater
from diffdistill.training.sharded.plan import Plan, copying


def build_network(settings: Network, image_shape: torch.Size, classes: int | None) -> UNet2DModel | UViT:
    """A stock UNet2DModel or a U-ViT, with ScaleLong if asked; `classes` counts the null class of guidance too.

    Raises ConfigError for settings that no network can have.
    """
    try:
        return _built(settings, image_shape, classes)
    except (ValueError, ArithmeticError, AssertionError) as error:
        raise ConfigError(f"the settings of network do not fit together ({reason_of(error)}); change them") from error


def _built(settings: Network, image_shape: torch.Size, classes: int | None) -> UNet2DModel | UViT:
    if settings.kind == "uvit":
        channels, height, width = image_shape
        size = height if height == width else (height, width)
        network = UViT(sample_size=size, in_channels=channels, num_class_embeds=classes, **settings.uvit.model_dump())
    else:
        network = build_unet(settings, image_shape, classes)
    if settings.scalelong is not None:
        apply_scalelong(network, **settings.scalelong.model_dump())
    return network


def check_pictures(settings: Network, name: str, image_shape: torch.Size) -> None:
    """ConfigError for pictures `(C, H, W)` of the data `name` that the network does not take."""
    _, height, width = image_shape
    unet = settings.kind == "unet"
    side = 2 ** (len(settings.block_out_channels) - 1) if unet else settings.uvit.patch_size
    if unet and height != width:
        raise ConfigError(
            f"'{name}' has images of {width}x{height}, and a network of UNet kind takes square ones; set "
            f"data.image_size to a multiple of {side}, which cuts out the middle"
        )
    if height % side or width % side:
        near, key = max(side, min(height, width) // side * side), "block_out_channels" if unet else "uvit.patch_size"
        raise ConfigError(
            f"'{name}' has images of {width}x{height}, and this network takes sides that are multiples of {side}; set "
            f"data.image_size={near}, or change network.{key}"
        )


def build_unet(settings: Network, image_shape: torch.Size, classes: int | None) -> UNet2DModel:
    channels, height, _ = image_shape
    depth = len(settings.block_out_channels)
    attention = {level % depth for level in settings.attention_levels}
    down = tuple("AttnDownBlock2D" if level in attention else "DownBlock2D" for level in range(depth))
    up = tuple("AttnUpBlock2D" if level in attention else "UpBlock2D" for level in reversed(range(depth)))
    return UNet2DModel(
        sample_size=height,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=settings.layers_per_block,
        block_out_channels=settings.block_out_channels,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=settings.norm_num_groups,
        num_class_embeds=classes,
    )


def from_scratch(config: Train, data: ImageSet) -> Denoiser:
    """The network of the settings, untrained, with the data's classes and, for guidance, a null class."""
    classes, null = data.num_classes, None
    if classes is not None and config.class_dropout > 0:
        classes, null = classes + 1, classes
    check_pictures(config.network, data.name, data.images.shape[1:])
    torch.manual_seed(config.seed)
    network = build_network(config.network, data.images.shape[1:], classes)
    return Denoiser(network, EDM(config.sigma_data), null_class=null)


def noise_law(settings: Noise, start: Denoiser | None) -> NoiseLaw:
    """The law that a model is trained under: of the settings, else of the model that it begins with, else Gaussian."""
    if settings.law is not None:
        return NoiseLaw(settings.law, settings.dimension)
    return NoiseLaw() if start is None else start.noise


class TeacherTask:
    """minimise E lambda(sigma) ||D(x0 + sigma eps, sigma, c) - x0||^2 / (C H W), lambda = (sigma^2 + s^2) / (sigma
    s)^2, for a model of another process the weight that makes it the error of its network's own output; or another
    one of `loss_weights`.

    The label is replaced by the null class with probability `class_dropout`, which gives guidance its unconditional
    half. eps is Gaussian, or Student's t (`noise_law`). start: the model to begin with; None: a network from scratch.
    """

    dropout = True  # of the network's own layers

    def __init__(self, config: Train, data: ImageSet, device: Device, start: Denoiser | None = None):
        self.config, self.data, self.device = config, data, device
        self.noise = noise_law(config.noise, start)
        model = self.begun(config, data, start)
        model.metadata = {name: value for name, value in model.metadata.items() if name != KEY} | self.noise.record
        self.model = model.requires_grad_().train(self.dropout)
        self.law = LevelLaw(plain(config.level, Level), model.sigma_min, model.sigma_max, model.process)
        self.weight = get_loss_weight(config.loss_weight)
        check_law(self.weight, self.law, config.sigma_data)
        self.ema = Ema(self.model, config.ema_decay_for(config.train_batch_size), copying(config, device))
        self.denoisers = {"network": self.model, "average": self.ema.module, **self.others()}
        self.plan = Plan(config, device, {role: each.network for role, each in self.denoisers.items()})
        self.plan.shard(exact=lambda role: config.exact)
        self.updater = Updater("network", self.model.parameters(), config.optimizer, self.steps)
        self.parts: Parts = {"network": self.model, "ema": self.ema, "optimizer": self.updater.optimizer}

    def begun(self, config: Train, data: ImageSet, start: Denoiser | None) -> Denoiser:
        """The model at the first step."""
        return from_scratch(config, data) if start is None else start

    @property
    def role(self) -> str:
        """Of the model that is published."""
        return self.model.role

    @property
    def levels(self) -> tuple[float, ...]:
        """Where a model of few steps is asked."""
        return self.model.levels

    @property
    def steps(self) -> int:
        """How many steps the schedule of the rate is made for."""
        return self.config.max_train_steps

    def others(self) -> dict[str, Denoiser]:
        """Further networks of the task by role, before any is sharded."""
        return {}

    def keep(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        """Where the run keeps what the task makes on its way; inputs: digests of what it is made from."""

    def update(self, step: int) -> Metrics:
        config = self.config
        mine = processes.rows(config.train_batch_size)  # what is drawn is drawn for all processes
        drawn = self.noised(*self.drawn(step, mine))
        x0, x_t, u, sigma, labels = (rows_of(value, mine) for value in drawn)
        with self.device.autocast():
            denoised = self.model(x_t, sigma, labels)
        loss = denoising_loss(denoised, x0, sigma, weight=self.weights(u, sigma)).mean()
        (len(x0) / config.train_batch_size * loss).backward()
        metrics = self.updater.step(step)
        self.ema.update(self.model)
        return {**processes.mean({"loss": loss.detach()}, len(x0), config.train_batch_size), **metrics}

    def drawn(self, step: int, mine: slice) -> tuple[Tensor, Tensor | None]:
        """`(images, labels)` of a step's whole batch, of which the rows `mine` are looked at."""
        config = self.config
        return self.data.draw(config.train_batch_size, config.seed, step, config.data.horizontal_flip, mine)

    def weights(self, u: Tensor, sigma: Tensor) -> Tensor:
        """Of the losses, `(B,)`."""
        if self.config.loss_weight == "edm":
            return native_weight(self.model.process, sigma)
        return self.weight.of(self.law, u, self.config.sigma_data)

    def noised(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """`(x0, x_t, u, sigma, labels)` on the device, of a whole batch: labels dropped in part, a level and a noise
        an image.
        """
        x0, labels = self.device.put(images, labels)
        assert x0 is not None
        if labels is not None and self.model.null_class is not None:
            dropped = torch.rand(len(labels), device=labels.device) < self.config.class_dropout
            labels = torch.where(dropped, self.model.null_class, labels)
        u, sigma = self.law.draw(len(x0), self.device.name)
        return x0, x0 + per_sample(sigma, x0) * self.noise.of(torch.randn_like(x0)), u, sigma, labels

    def networks(self) -> Networks:
        return layers_of(self.denoisers)

    def averaged(self) -> Denoiser:
        return self.ema.module
