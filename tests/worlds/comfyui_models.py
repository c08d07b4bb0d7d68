"""Teachers of ComfyUI's fixed widths and few layers: what its loaders tell one model from another by."""

from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_text import text_config, tokenizer, vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip(width: int) -> CLIPTextConfig:
    config = text_config()
    config.hidden_size, config.projection_dim, config.num_attention_heads = width, width, 4
    return config


def t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=190, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def words_beside(folder: Path) -> dict[str, object]:
    return {"tokenizer": tokenizer(folder.with_name("words"))}


def stable_diffusion(folder: Path, width: int = 768, heads: int = 8, **more: object) -> None:
    network = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(320, 320), attention_head_dim=heads,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, **more,
    )  # fmt: skip
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)
    StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(clip(width)), unet=network, scheduler=scheduler, **words_beside(folder),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def stable_diffusion_2(folder: Path) -> None:
    """Linear layers around attention and heads of 64; of epsilon, for v is told by a bias that so few layers lack."""
    stable_diffusion(folder, 1024, heads=5, use_linear_projection=True)


def stable_diffusion_xl(folder: Path) -> None:
    network = UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(320, 320, 320), attention_head_dim=(5, 5, 5),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    words = tokenizer(folder.with_name("words"))
    StableDiffusionXLPipeline(
        vae=vae(), text_encoder=CLIPTextModel(clip(768)), text_encoder_2=CLIPTextModelWithProjection(clip(1280)),
        tokenizer=words, tokenizer_2=words, unet=network, scheduler=EulerDiscreteScheduler(**BETAS),
    ).save_pretrained(folder)  # fmt: skip


def stable_diffusion_3(folder: Path) -> None:
    """As deep as it has heads of 64, which is how ComfyUI counts them."""
    network = SD3Transformer2DModel(
        sample_size=8, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=4096, caption_projection_dim=128, pos_embed_max_size=16, pooled_projection_dim=2048,
    )  # fmt: skip
    words = tokenizer(folder.with_name("words"))
    StableDiffusion3Pipeline(
        vae=vae(latents=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        transformer=network, tokenizer=words, tokenizer_2=words, tokenizer_3=words, text_encoder_3=t5(4096),
        text_encoder=CLIPTextModelWithProjection(clip(768)), text_encoder_2=CLIPTextModelWithProjection(clip(1280)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)  # fmt: skip


def pixart(folder: Path) -> None:
    network = PixArtTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, out_channels=8, num_layers=1, sample_size=128,
        cross_attention_dim=1152, caption_channels=4096,
    )  # fmt: skip
    PixArtAlphaPipeline(
        vae=vae(), transformer=network, text_encoder=t5(4096), **words_beside(folder),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False),
    ).save_pretrained(folder)  # fmt: skip


def flux(folder: Path) -> None:
    """Half a billion weights: ComfyUI knows one width."""
    network = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    words = tokenizer(folder.with_name("words"))
    FluxPipeline(
        vae=vae(latents=16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False), tokenizer=words,
        tokenizer_2=words, transformer=network, text_encoder=CLIPTextModel(clip(768)), text_encoder_2=t5(4096),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    ).save_pretrained(folder)  # fmt: skip


MODELS = {
    "sd": stable_diffusion, "sd2": stable_diffusion_2, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3,
    "pixart": pixart, "flux": flux,
}  # fmt: skip


def teacher(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    MODELS[name](folder / name)
    return folder / name
