"""Training a teacher: denoising score matching with EDM preconditioning (2206.00364, Table 1)."""

import torch
from diffusers import UNet2DModel

from diffdistill import processes
from diffdistill.config.networks import Network
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.files import reason_of
from diffdistill.losses import denoising_loss
from diffdistill.matching.micro_batches import Metrics, rows_of
from diffdistill.models import UViT, apply_scalelong
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


class TeacherTask:
    """minimise E lambda(sigma) ||D(x0 + sigma eps, sigma, c) - x0||^2 / (C H W), lambda = (sigma^2 + s^2) / (sigma
    s)^2.

    The label is replaced by the null class with probability `class_dropout`, which gives guidance its unconditional
    half.
    """

    def __init__(self, config: Train, data: ImageSet, device: Device):
        self.config, self.data, self.device = config, data, device
        classes, null = data.num_classes, None
        if classes is not None and config.class_dropout > 0:
            classes, null = classes + 1, classes
        check_pictures(config.network, data.name, data.images.shape[1:])
        torch.manual_seed(config.seed)
        network = build_network(config.network, data.images.shape[1:], classes)
        self.model = Denoiser(network, EDM(config.sigma_data), null_class=null).train()
        self.law = LevelLaw(plain(config.level, Level))
        self.ema = Ema(self.model, config.ema_decay_for(config.train_batch_size), copying(config, device))
        self.plan = Plan(config, device, {"network": network, "average": self.ema.module.network})
        self.plan.shard()
        self.updater = Updater("network", self.model.parameters(), config.optimizer, config.max_train_steps)
        self.denoisers = {"network": self.model, "average": self.ema.module}
        self.parts: Parts = {"network": self.model, "ema": self.ema, "optimizer": self.updater.optimizer}

    def update(self, step: int) -> Metrics:
        config = self.config
        mine = processes.rows(config.train_batch_size)  # what is drawn is drawn for all processes
        images, labels = self.data.draw(config.train_batch_size, config.seed, step, config.data.horizontal_flip, mine)
        x0, labels = self.device.put(images, labels)
        assert x0 is not None
        if labels is not None and self.model.null_class is not None:
            dropped = torch.rand(len(labels), device=labels.device) < self.config.class_dropout
            labels = torch.where(dropped, self.model.null_class, labels)
        _, sigma = self.law.draw(len(x0), self.device.name)
        x_t = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
        count = len(x0)
        x0, x_t, sigma, labels = (rows_of(value, mine) for value in (x0, x_t, sigma, labels))
        with self.device.autocast():
            denoised = self.model(x_t, sigma, labels)
        loss = denoising_loss(denoised, x0, sigma, self.config.sigma_data).mean()
        (len(x0) / count * loss).backward()
        metrics = self.updater.step(step)
        self.ema.update(self.model)
        return {**processes.mean({"loss": loss.detach()}, len(x0), count), **metrics}

    def networks(self) -> Networks:
        return layers_of(self.denoisers)

    def averaged(self) -> Denoiser:
        return self.ema.module
