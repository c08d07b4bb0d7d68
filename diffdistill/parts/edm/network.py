"""What the two EDM networks share: how they are called, and the way down and up a UNet."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.parts.edm.layers import Block, Conv
from diffdistill.parts.edm.preconditioning import Preconditioning


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
