"""U-ViT (2209.12152): a vision transformer with long skip connections, as a diffusers model.

Time, class and image patches are all tokens. `depth / 2` blocks, one middle block and `depth / 2` blocks with a long
skip each: h <- Linear(concat(h, skip)), the best of the five ways in the paper's ablation (section 3.1), with nothing
normalised in between. A 3x3 convolution follows the last linear map (section 3.1). diffusers' own `UVit2DModel` is
another network, without long skips.
"""

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin  # named here so that diffusers pipelines can load this class
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from diffdistill.errors import ConfigError


class UViTOutput(NamedTuple):
    sample: Tensor


class UViTBlock(nn.Module):
    """Pre-norm transformer block on `(B, L, D)`, in the decoder with the long skip before it."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, long_skip: bool):
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if long_skip else None
        self.norm1 = nn.LayerNorm(width)
        # diffusers' module, so that whatever sets attention kernels on a UNet sets them here too.
        self.attn = Attention(width, heads=heads, dim_head=width // heads, bias=False, out_bias=True)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, hidden_states: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            hidden_states = self.skip_linear(torch.cat([hidden_states, skip], dim=-1))  # type: ignore[list-item]
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states))
        return hidden_states + self.mlp(self.norm2(hidden_states))


class UViT(ModelMixin, ConfigMixin):
    """U-ViT for pixels or latents, with or without class labels.

    sample_size: pixels a side (or height and width); in_channels, out_channels: of the image, out null means as in;
    patch_size: pixels a side of a patch; hidden_size: D; depth: blocks with long skips and their partners, even; the
    paper counts the middle block too (its 13 layers are depth 12); num_class_embeds: classes, the null class of
    guidance counted. The paper's U-ViT-S/2 for CIFAR-10 is the default but for the channels: 44 million parameters.

    Raises ConfigError where sizes do not divide.

    >>> network = UViT(sample_size=8, hidden_size=32, depth=2, num_attention_heads=2, num_class_embeds=10)
    >>> network(torch.randn(2, 3, 8, 8), torch.tensor([0, 500]), torch.tensor([3, 9])).sample.shape
    torch.Size([2, 3, 8, 8])
    >>> network.num_tokens  # time, class, 4 x 4 patches
    18
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UViTBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["UViTBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        patch_size: int = 2,
        hidden_size: int = 512,
        depth: int = 12,
        num_attention_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        if height % patch_size or width % patch_size:
            raise ConfigError(
                f"images of {height}x{width} do not split into patches of {patch_size}; change patch_size"
            )
        if hidden_size % num_attention_heads:
            raise ConfigError(
                f"hidden_size {hidden_size} must be a multiple of num_attention_heads {num_attention_heads}"
            )
        if depth < 2 or depth % 2:
            raise ConfigError(f"depth {depth} must be even and at least 2: a long skip joins two blocks")
        self.grid = (height // patch_size, width // patch_size)
        self.image_size = (height, width)
        self.extras = 1 if num_class_embeds is None else 2
        self.out_channels = out_channels or in_channels

        self.patch_embedding = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, hidden_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, self.num_tokens, hidden_size))

        def blocks(long_skip: bool, count: int = depth // 2) -> nn.ModuleList:
            return nn.ModuleList(
                UViTBlock(hidden_size, num_attention_heads, mlp_ratio, long_skip) for _ in range(count)
            )

        self.in_blocks = blocks(long_skip=False)
        self.mid_block = UViTBlock(hidden_size, num_attention_heads, mlp_ratio, long_skip=False)
        self.out_blocks = blocks(long_skip=True)
        self.norm_out = nn.LayerNorm(hidden_size)
        self.proj_out = nn.Linear(hidden_size, patch_size**2 * self.out_channels)
        self.conv_out = nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1)
        self.gradient_checkpointing = False
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Linear maps and position embedding from a normal law of deviation 0.02, cut at 2; biases 0."""
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)

    @property
    def num_tokens(self) -> int:
        """L: time, class if there is one, patches."""
        return self.extras + self.grid[0] * self.grid[1]

    def feature_map(self, tokens: Tensor) -> Tensor:
        """`(B, L, D)` tokens of any block -> their image part as `(B, D, h, w)`."""
        return tokens[:, self.extras :].transpose(1, 2).unflatten(2, self.grid)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UViTOutput | tuple[Tensor]:
        """sample `(B, C, H, W)`, timestep `()` or `(B,)`, class_labels `(B,)` int64 -> `(B, C_out, H, W)`."""
        x = self._tokens(sample, timestep, class_labels)
        skips = []
        for block in self.in_blocks:
            x = self._run(block, x)
            skips.append(x)
        x = self._run(self.mid_block, x)
        for block in self.out_blocks:
            x = self._run(block, x, skips.pop())
        patches = self.proj_out(self.norm_out(x))[:, self.extras :]
        output = self.conv_out(self._image(patches))
        return UViTOutput(output) if return_dict else (output,)

    def _tokens(self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> Tensor:
        if tuple(sample.shape[2:]) != self.image_size:
            height, width = self.image_size
            raise ConfigError(
                f"this U-ViT takes {height}x{width}, its position embedding is fixed; got {tuple(sample.shape[2:])}"
            )
        time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        tokens = [self.time_proj(time).to(sample.dtype)[:, None]]
        if (class_labels is None) != (self.class_embedding is None):
            raise ConfigError(
                "class_labels must be given to a U-ViT with num_class_embeds, and only to such a one; "
                f"num_class_embeds is {self.config.num_class_embeds}"
            )
        if self.class_embedding is not None:
            tokens.append(self.class_embedding(class_labels)[:, None])
        tokens.append(self.patch_embedding(sample).flatten(2).transpose(1, 2))
        return torch.cat(tokens, dim=1) + self.position_embedding

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _image(self, patches: Tensor) -> Tensor:
        """`(B, h w, p p C)` -> `(B, C, h p, w p)`."""
        (h, w), p = self.grid, self.config.patch_size
        return patches.unflatten(1, (h, w)).unflatten(3, (p, p, -1)).permute(0, 5, 1, 3, 2, 4).reshape(
            len(patches), self.out_channels, h * p, w * p
        )  # fmt: skip
