"""Networks with long skips, and a call that suits each."""

import torch
from diffusers import UNet2DConditionModel

from diffdistill.models import UViT


def uvit(depth=6):
    torch.manual_seed(0)
    return UViT(8, 1, patch_size=2, hidden_size=32, depth=depth, num_attention_heads=4).eval()


def stable_diffusion(**more):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        **more,
    ).eval()


def call(network, seed=1, **extra):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, network.config.in_channels, 8, 8, generator=generator)
    if isinstance(network, UNet2DConditionModel):
        extra["encoder_hidden_states"] = torch.randn(2, 3, 8, generator=generator)
    if getattr(network.config, "addition_embed_type", None) == "text_time":
        text, ids = torch.randn(2, 8, generator=generator), torch.randn(2, 6, generator=generator)
        extra["added_cond_kwargs"] = {"text_embeds": text, "time_ids": ids}
    return network(x, torch.tensor([3.0, 7.0]), **extra, return_dict=False)[0]
