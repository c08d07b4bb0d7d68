"""Tiny networks of every kind that attends, and a look at their kernels by PyTorch's own profiler."""

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel
from tiny import tiny_unet
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from diffdistill.models import SongUNet, UViT

MATH = "aten::_scaled_dot_product_attention_math"
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


def kernels(run):
    """The kernels that PyTorch's own profiler sees: not the observer under test."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return {event.name for event in seen.events() if event.name.startswith("aten::_scaled_dot_product")}


def text_unet(channels=(8, 16), **options):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=4,
        attention_head_dim=2,  # by diffusers' misnomer the number of heads
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    ).eval()


def sdxl_unet():
    return text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32
    )


def uvit():
    torch.manual_seed(0)
    return UViT(
        sample_size=8, in_channels=1, hidden_size=16, depth=2, num_attention_heads=2, num_class_embeds=4
    ).eval()


def moved(network):
    """With every weight away from zero, where the last layers of some networks start."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def edm():
    torch.manual_seed(0)
    return moved(
        SongUNet(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            num_class_embeds=4,
            label_dim=3,
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(4,),
        )
    )


def dit():
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )
    return moved(network)


NETWORKS = {
    **{"unet": lambda: tiny_unet().eval(), "text": text_unet, "sdxl": sdxl_unet},
    **{"uvit": uvit, "dit": dit, "edm": edm},
}


class Plain(nn.Module):
    """A layer of no library that calls scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class PlainNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(Plain(), nn.Linear(8, 8), Plain())

    def forward(self, x):
        return self.layers(x)


def flux():
    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    noise = torch.Generator().manual_seed(1)
    tokens, text, pooled = (torch.randn(shape, generator=noise) for shape in ((1, 16, 4), (1, 6, 8), (1, 8)))
    return network, lambda: network(
        tokens,
        text,
        pooled,
        torch.ones(1),
        torch.zeros(16, 3),
        torch.zeros(6, 3),
        return_dict=False,
    )[0]
