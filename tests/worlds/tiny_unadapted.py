"""Tiny real pipelines of classes that have no adapter, built from configs; nothing is downloaded."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_text import WIDTH, t5, tokenizer, vae

SIDE = 32  # of images, in pixels: a multiple of what each class wants


def words(folder: Path) -> Any:
    """CLIP's letters, with the template that chats are written in."""
    made = tokenizer(folder.with_name("words"))
    made.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    return made


def shifting(**more: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **more)


def autoencoder(blocks: int = 2) -> Any:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    made = diffusers.AutoencoderKL(
        block_out_channels=(8,) * blocks, latent_channels=4, norm_num_groups=4, scaling_factor=2.0, shift_factor=0.1,
        use_quant_conv=False, use_post_quant_conv=False, **kinds,
    )  # fmt: skip
    with torch.no_grad():
        made.encoder.conv_out.bias[4:] = -10.0  # log variance
    return made


def qwen_autoencoder() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip


def language(layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": 190, "hidden_size": 2 * WIDTH, "intermediate_size": 16, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": WIDTH, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1, "max_position_embeddings": 4096,
    }  # fmt: skip


def sight() -> dict[str, Any]:
    return {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 2 * WIDTH}


def qwen_image(folder: Path) -> Path:
    """Guides in two calls a step, where it is given a negative prompt, and keeps the length of the output."""
    turned = {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}}
    config = transformers.Qwen2_5_VLConfig(text_config=language() | turned, vision_config=sight())
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=2 * WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    diffusers.QwenImagePipeline(
        scheduler=shifting(shift_terminal=0.02), vae=qwen_autoencoder(), transformer=network, tokenizer=words(folder),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux_2_klein(folder: Path, *, distilled: bool = False) -> Path:
    """Latents in patches that are normalised; its shift depends on the number of steps."""
    network = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * 2 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        timestep_guidance_channels=32,
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    images = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, **blocks
    )
    images.bn.running_mean.normal_(0, 0.3)
    images.bn.running_var.uniform_(0.5, 2.0)
    diffusers.Flux2KleinPipeline(
        scheduler=shifting(), vae=images, transformer=network, tokenizer=words(folder), is_distilled=distilled,
        text_encoder=transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**language(28))),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def z_image(folder: Path) -> Path:
    """Lists of images and of texts, time towards the data, the velocity's other sign, guidance by w - 1."""
    network = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=2 * WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():
        for name in ("x_pad_token", "cap_pad_token"):
            getattr(network, name).normal_()
    diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder(), transformer=network,
        tokenizer=words(folder), text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**language())),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def gemma() -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(**language()))


def sana(folder: Path) -> Path:
    """A deep-compression autoencoder; prompts come with instructions, negative ones without."""
    network = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=2 * WIDTH,
        sample_size=16,
    )  # fmt: skip
    images = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.4,
    )  # fmt: skip
    diffusers.SanaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=images, transformer=network, tokenizer=words(folder),
        text_encoder=gemma(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def lumina_2(folder: Path) -> Path:
    """Time towards the data, and a guided output that keeps its length."""
    network = diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(300, 32, 32),
        cap_feat_dim=2 * WIDTH,
    )  # fmt: skip
    diffusers.Lumina2Pipeline(
        scheduler=shifting(), vae=autoencoder(4), transformer=network, tokenizer=words(folder), text_encoder=gemma()
    ).save_pretrained(folder)
    return folder


def chroma(folder: Path) -> Path:
    """Packed latents as Flux has them, a mask over texts and images, two calls a step."""
    network = diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    diffusers.ChromaPipeline(
        scheduler=shifting(), vae=autoencoder(), transformer=network, tokenizer=words(folder), text_encoder=t5()
    ).save_pretrained(folder)
    return folder


def krea_2(folder: Path) -> Path:
    """Several layers of its text encoder, guidance by w - 1."""
    turned = {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}, "rope_theta": 1e6}
    config = transformers.Qwen3VLConfig(
        text_config=language() | turned, vision_config=sight() | {"deepstack_visual_indexes": [0]}
    )
    network = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=2 * WIDTH, num_text_layers=3,
        text_num_attention_heads=1, text_num_key_value_heads=1, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    diffusers.Krea2Pipeline(
        scheduler=shifting(), vae=qwen_autoencoder(), transformer=network, tokenizer=words(folder),
        text_encoder=transformers.Qwen3VLModel(config), text_encoder_select_layers=(0, 1, 2),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def pixart_sigma(folder: Path) -> Path:
    """Has an adapter, and is read off to be compared with it."""
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        cross_attention_dim=12, caption_channels=2 * WIDTH, norm_num_groups=4, use_additional_conditions=False,
    )  # fmt: skip
    diffusers.PixArtSigmaPipeline(
        vae=vae(), transformer=network, text_encoder=t5(), tokenizer=words(folder),
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    ).save_pretrained(folder)  # fmt: skip
    return folder


UNADAPTED = {
    "qwen_image": qwen_image, "flux_2_klein": flux_2_klein, "z_image": z_image, "sana": sana, "lumina_2": lumina_2,
    "chroma": chroma, "krea_2": krea_2,
}  # fmt: skip
