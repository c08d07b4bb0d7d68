"""EDM's networks: DDPM++ and NCSN++ (Song et al. 2011.13456) and ADM (Dhariwal and Nichol 2105.05233), as Karras et
al. train them (2206.00364, the appendix on network architectures).

Saved folders call `diffdistill.models` the module of these classes, wherever they stand: that is the name to import
before stock diffusers reads one.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import ConfigError
from diffdistill.parts.edm.layers import Block, Conv, PyramidDown, geometric_frequencies, group_norm, sinusoids
from diffdistill.parts.edm.preconditioning import Preconditioning

HEAD_CHANNELS = 64  # of an attention head of ADM


class EDMNetwork(ModelMixin, ConfigMixin):
    """A diffusers model that is called as the UNets of consistency models are: time input 250 ln(sigma), output F.

    Subclasses have `outer`, `map_label` (or None), `map_augment` (or None), build `enc` and `dec` by the methods here,
    and say what a block is, how noise, labels and augmentation become one embedding and how the last features become
    an image.
    """

    outer: Preconditioning
    enc: nn.ModuleDict
    dec: nn.ModuleDict
    map_label: nn.Linear | None
    map_augment: nn.Linear | None

    @property
    def tap_aliases(self) -> dict[str, str]:
        """The layer that is meant by `mid_block`, the name diffusers' UNets have for the middle."""
        return {"mid_block": "dec." + next(name for name in self.dec if name.endswith("_in1"))}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """F, `(B, C, H, W)`, of c_in x and 250 ln(sigma) (2206.00364, eq. 7).

        class_labels: int64 `(B,)`; the index after the last class, or None, is "no class". augment_labels: `(B, 9)`,
        what was done to training images (ibid., appendix F.2); None, as zeros, asks for images as they are.
        """
        time = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).flatten().expand(len(sample))
        x, noise = self.outer.to_network(sample, time)
        embedding = self.embed(noise, self._one_hot(class_labels, noise), augment_labels)
        x, skips = self.encode(x, embedding)
        output = self.head(self.decode(x, skips, embedding))
        # Networks of improved DDPM give a variance as further channels, which no sampler here uses.
        output = self.outer.to_f(output[:, : sample.shape[1]], sample, time)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, direction: Any = None) -> Block:
        raise NotImplementedError

    def _attends_up(self, size: int, index: int) -> bool:
        """Whether block `index` of a level has attention on the way up, at `size` pixels."""
        return size in self.config.attn_resolutions

    def _build_down(self, level: int, channels: int) -> None:
        """The layers that halve the resolution, into `level`."""
        size = self.config.sample_size >> level
        self.enc[f"{size}x{size}_down"] = self._block(channels, channels, direction="down")

    def build_encoder(self, channels: int) -> list[int]:
        """`enc`, `channels` after its first convolution; the channels of what every layer sends across."""
        c = self.config
        across: list[int] = []
        self.enc = nn.ModuleDict()
        for level, multiple in enumerate(c.channel_mult):
            size = c.sample_size >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv(c.in_channels, channels, 3)
            else:
                self._build_down(level, channels)
            across.append(channels)
            for index in range(c.num_blocks):
                out = c.model_channels * multiple
                self.enc[f"{size}x{size}_block{index}"] = self._block(channels, out, size in c.attn_resolutions)
                channels = out
                across.append(channels)
        return across

    def build_decoder(self, across: list[int]) -> int:
        """`dec`, one block more a level; the channels of the last features."""
        c = self.config
        self.dec = nn.ModuleDict()
        channels = across[-1]
        for level, multiple in reversed(list(enumerate(c.channel_mult))):
            size = c.sample_size >> level
            if level == len(c.channel_mult) - 1:
                self.dec[f"{size}x{size}_in0"] = self._block(channels, channels, attention=True)
                self.dec[f"{size}x{size}_in1"] = self._block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = self._block(channels, channels, direction="up")
            for index in range(c.num_blocks + 1):
                out = c.model_channels * multiple
                block = self._block(channels + across.pop(), out, self._attends_up(size, index))
                self.dec[f"{size}x{size}_block{index}"] = block
                channels = out
        return channels

    def _one_hot(self, labels: Tensor | None, like: Tensor) -> Tensor | None:
        """`(B, label_dim)` float; "no class" is the zero vector."""
        count = self.config.label_dim
        if not count:
            return None
        if labels is None:
            return like.new_zeros(len(like), count)
        return F.one_hot(labels.long(), count + 1)[:, :count].float()

    def _augmented(self, embedding: Tensor, augment: Tensor | None) -> Tensor:
        if self.map_augment is None or augment is None:
            return embedding
        return embedding + self.map_augment(augment.to(self.dtype))

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features at the bottom, and those that every encoder layer sends across."""
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        return x, skips

    def decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        for name, layer in self.dec.items():
            if isinstance(layer, Block):
                x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
                x = layer(x, embedding)
        return x


class SongUNet(EDMNetwork):
    """DDPM++ with the defaults; NCSN++ with embedding_type fourier, encoder_type residual, channel_mult_noise 2,
    resample_filter (1, 3, 3, 1).

    Levels halve the resolution; each has `num_blocks` residual blocks (one more on the way up), attention at
    `attn_resolutions` (pixels). NCSN++ feeds a pyramid of filtered images into every level of the encoder.

    sample_size: pixels a side; label_dim: classes, 0 for none; num_class_embeds: the same and one for "no class", as
    diffusers counts; augment_dim: 9 if trained with augmentation, else 0; model_channels times channel_mult: the
    channels of each level. Raises ConfigError for another embedding_type or encoder_type.

    It is called with c_in x and 250 ln(sigma), which a `Denoiser` does:

    >>> from diffdistill import Denoiser
    >>> from diffdistill.process import EDM
    >>> unet = SongUNet(sample_size=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
    >>> denoiser, x, sigma = Denoiser(unet.eval(), EDM()), torch.randn(2, 3, 8, 8), torch.tensor([0.002, 80.0])
    >>> x0 = denoiser(x, sigma)
    >>> x0.shape, bool((x0[0] - x[0]).abs().max() < 0.02)  # hardly any noise: D(x) is about x
    (torch.Size([2, 3, 8, 8]), True)
    """

    __module__ = "diffdistill.models"
    map_noise: nn.Module | None

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "residual"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
        preconditioning: dict[str, Any] | None = None,
    ):
        super().__init__()
        for name, given, allowed in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "residual")),
        ):
            if given not in allowed:
                raise ConfigError(f"{name} '{given}' of a SongUNet is unknown; use {' or '.join(allowed)}")
        self.outer = Preconditioning(**(preconditioning or {}))
        noise, self.embedding_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = FourierNoise(noise) if embedding_type == "fourier" else None
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, self.embedding_channels)
        self.map_layer1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        channels = self.build_decoder(self.build_encoder(model_channels))
        self.dec[f"{sample_size}x{sample_size}_aux_norm"] = group_norm(channels, 1e-6)
        self.dec[f"{sample_size}x{sample_size}_aux_conv"] = Conv(channels, out_channels, 3)

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, direction: Any = None) -> Block:
        return Block(
            in_channels,
            out_channels,
            self.embedding_channels,
            heads=int(attention),
            direction=direction,
            taps=self.config.resample_filter,
            project_skip=True,
            adaptive=False,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            dropout=self.config.dropout,
        )

    def _attends_up(self, size: int, index: int) -> bool:
        return index == self.config.num_blocks and super()._attends_up(size, index)

    def _build_down(self, level: int, channels: int) -> None:
        super()._build_down(level, channels)
        c, size = self.config, self.config.sample_size >> level
        if c.encoder_type == "residual":
            # The pyramid is an image at first, and then what it became a level above.
            pyramid = c.in_channels if level == 1 else c.model_channels * c.channel_mult[level - 2]
            self.enc[f"{size}x{size}_aux_residual"] = PyramidDown(pyramid, channels, c.resample_filter)

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        if self.map_noise is not None:
            embedding = self.map_noise(noise)
        else:
            count = self.config.model_channels * self.config.channel_mult_noise // 2
            cosines, sines = sinusoids(noise, geometric_frequencies(count, reach_end=True, device=noise.device))
            embedding = torch.cat([sines, cosines], dim=1)
        embedding = embedding.to(self.dtype)
        if self.map_label is not None and labels is not None:
            # One-hot vectors are scaled to unit variance over the classes.
            embedding = embedding + self.map_label(labels.to(self.dtype) * math.sqrt(self.config.label_dim))
        embedding = self._augmented(embedding, augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        pyramid = x
        for layer in self.enc.values():
            if isinstance(layer, PyramidDown):
                # The pyramid joins the features at once: it is their sum from here on, and what goes across.
                x = pyramid = skips[-1] = (x + layer(pyramid)) / math.sqrt(2)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        return x, skips

    def head(self, x: Tensor) -> Tensor:
        size = self.config.sample_size
        return self.dec[f"{size}x{size}_aux_conv"](F.silu(self.dec[f"{size}x{size}_aux_norm"](x)))


class FourierNoise(nn.Module):
    """Random Fourier features (2006.10739): frequencies 16 N(0, 1), drawn once and part of the weights."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """c_noise `(B,)` -> `(B, channels)`, float32."""
        cosines, sines = sinusoids(noise, 2 * math.pi * self.freqs.float())
        return torch.cat([sines, cosines], dim=1)


class DhariwalUNet(EDMNetwork):
    """ADM: the embedding scales and shifts each block's second norm, attention has heads of 64 channels.

    The defaults are the ImageNet-64 network; `attn_resolutions` are in pixels. Other arguments are those of
    `SongUNet`; the lowest level has attention, and so 64 channels or a multiple.

    >>> from diffdistill import Denoiser
    >>> from diffdistill.process import EDM
    >>> sizes = {"sample_size": 8, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1}
    >>> unet = DhariwalUNet(**sizes, attn_resolutions=(4,), label_dim=10, num_class_embeds=11)
    >>> denoiser = Denoiser(unet.eval(), EDM(), null_class=10)
    >>> x0 = denoiser(torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0]), torch.tensor([3, 9]))
    >>> x0.shape, denoiser.num_classes
    (torch.Size([2, 3, 8, 8]), 10)
    """

    __module__ = "diffdistill.models"

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        preconditioning: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.outer = Preconditioning(**(preconditioning or {}))
        self.embedding_channels = model_channels * channel_mult_emb
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, self.embedding_channels)
        self.map_layer1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self.map_label = nn.Linear(label_dim, self.embedding_channels, bias=False) if label_dim else None
        channels = self.build_decoder(self.build_encoder(model_channels * channel_mult[0]))
        self.out_norm = group_norm(channels)
        self.out_conv = Conv(channels, out_channels, 3)

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, direction: Any = None) -> Block:
        return Block(
            in_channels,
            out_channels,
            self.embedding_channels,
            heads=out_channels // HEAD_CHANNELS if attention else 0,
            direction=direction,
            project_skip=False,
            adaptive=True,
            skip_scale=1.0,
            eps=1e-5,
            dropout=self.config.dropout,
        )

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        count = self.config.model_channels // 2
        parts = sinusoids(noise, geometric_frequencies(count, reach_end=False, device=noise.device))
        embedding = self._augmented(torch.cat(parts, dim=1).to(self.dtype), augment)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels.to(self.dtype))
        return F.silu(embedding)

    def head(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))
