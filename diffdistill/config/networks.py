"""The sections of a network that is trained from scratch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffdistill.section import Count, Section


class UViTSize(Section):
    """2209.12152, table 1: U-ViT-S is hidden_size 512, depth 12, 8 heads (its 13 layers count the middle block)."""

    patch_size: Count = 2
    hidden_size: Count = 256
    depth: Count = Field(12, description="blocks that long skips join, even; a middle block is added")
    num_attention_heads: Count = 8


class ScaleLong(Section):
    """2310.13545: the long skips scaled while training; see docs/scalelong.md before using it on a UNet."""

    mode: Literal["cs", "ls", "rsqrt2"] = Field(
        "cs", description="cs: kappa^(i-1), deepest skip smallest; rsqrt2: 1/sqrt(2); ls: learned gates"
    )
    kappa: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="cs: 0.5 to 0.95; 0.9 or more for 12 skips")
    position: Literal["pre_norm", "post_norm"] = Field(
        "pre_norm", description="pre_norm: the paper's, cancelled by a UNet's GroupNorm; post_norm: ours, UNets only"
    )
    start: Literal["identity", "reference"] = Field("identity", description="ls: gates of 1, or near 1/2")


class Network(Section):
    """A UNet2DModel, or a U-ViT, to train from scratch."""

    kind: Literal["unet", "uvit"] = "unet"
    uvit: UViTSize = UViTSize()
    scalelong: ScaleLong | None = Field(None, description="scale the long skips while training; null: do not")
    block_out_channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 64, 128)
    layers_per_block: Count = 1
    attention_levels: tuple[int, ...] = Field(
        (-1,), description="resolutions with attention, counted from the finest; -1 is the coarsest"
    )
    attention_head_dim: Count = 32
    norm_num_groups: Count = 8

    @model_validator(mode="after")
    def _unet_can_be_built(self) -> Self:
        channels, depth = self.block_out_channels, len(self.block_out_channels)
        if self.kind != "unet":
            return self
        if odd := [count for count in channels if count % self.norm_num_groups]:
            raise ValueError(
                f"network.block_out_channels has {odd[0]}, which is no multiple of network.norm_num_groups="
                f"{self.norm_num_groups}; change one of them"
            )
        if far := [level for level in self.attention_levels if not -depth <= level < depth]:
            raise ValueError(
                f"network.attention_levels has {far[0]} and there are {depth} resolutions; use {-depth} to {depth - 1}"
            )
        attending = [channels[level] for level in {*self.attention_levels, -1}]  # the middle block attends always
        if min(attending) < self.attention_head_dim:
            raise ValueError(
                f"network.attention_head_dim is {self.attention_head_dim}, and a level with attention has "
                f"{min(attending)} channels; make it at most that"
            )
        return self
