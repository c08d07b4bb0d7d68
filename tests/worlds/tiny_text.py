"""Tiny real text-to-image pipelines, built from configs, and pairs for them; nothing is downloaded."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
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
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

WIDTH = 8


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Bytes as letters, no merges: the vocabulary of CLIP without its words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=190, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def unet(**extra: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, **extra,
    )  # fmt: skip


def vae(latents: int = 4, **extra: object) -> AutoencoderKL:
    """Latents of the size that networks are made for, and as sharp as those of a trained one."""
    network = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=16, scaling_factor=2.0,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=latents, norm_num_groups=4, **extra,
    )  # fmt: skip
    with torch.no_grad():
        (network.quant_conv or network.encoder.conv_out).bias[latents:] = -10.0  # log variance
    return network


def stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """A StableDiffusionPipeline of 16x16 images."""
    torch.manual_seed(seed)
    StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config()), tokenizer=tokenizer(folder.with_name("words")),
        unet=unet(cross_attention_dim=WIDTH),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def stable_diffusion_xl(folder: Path, seed: int = 0) -> Path:
    """A StableDiffusionXLPipeline of 16x16 images."""
    torch.manual_seed(seed)
    words = tokenizer(folder.with_name("words"))
    network = unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4, use_linear_projection=True,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config()), tokenizer=words, unet=network,
        text_encoder_2=CLIPTextModelWithProjection(text_config()), tokenizer_2=words,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def stable_diffusion_3(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A StableDiffusion3Pipeline of 16x16 images; its T5 reads CLIP's words."""
    torch.manual_seed(seed)
    words = tokenizer(folder.with_name("words"))
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=8, pos_embed_max_size=8,
        pooled_projection_dim=2 * WIDTH,
    )  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=190, d_model=2 * WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False), transformer=network,
        text_encoder=CLIPTextModelWithProjection(text_config()), tokenizer=words, text_encoder_3=t5, tokenizer_3=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config()), tokenizer_2=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=190, d_model=2 * WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def flux(folder: Path, seed: int = 0) -> Path:
    """A guidance-distilled FluxPipeline whose own size is 256x256; tests ask for 16x16."""
    torch.manual_seed(seed)
    words = tokenizer(folder.with_name("words"))
    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    FluxPipeline(
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False), transformer=network,
        text_encoder=CLIPTextModel(text_config()), tokenizer=words, text_encoder_2=t5(), tokenizer_2=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def pixart(folder: Path, seed: int = 0) -> Path:
    """A PixArtAlphaPipeline with learned variance that is told the resolution; its own size is 256x256."""
    torch.manual_seed(seed)
    network = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2, sample_size=128,
        cross_attention_dim=12, caption_channels=2 * WIDTH, norm_num_groups=4,
    )  # fmt: skip
    PixArtAlphaPipeline(
        vae=vae(), transformer=network, text_encoder=t5(), tokenizer=tokenizer(folder.with_name("words")),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def png(colour: int, shape: tuple[int, int] = (20, 16), seed: int = 0) -> bytes:
    """Noise about one brightness, `(height, width)`."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*shape, 3))
    file = io.BytesIO()
    Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pair_rows(count: int = 24) -> dict[str, list]:
    """Pick-a-Pic's columns: dark images are wanted, every second time as jpg_1."""
    rows: dict[str, list] = {name: [] for name in ("jpg_0", "jpg_1", "label_0", "label_1", "caption")}
    for i in range(count):
        first = i % 2 == 0
        dark, light = png(60, seed=i), png(200, (16, 24), seed=1000 + i)
        rows["jpg_0"].append(dark if first else light)
        rows["jpg_1"].append(light if first else dark)
        rows["label_0"].append(float(first))
        rows["label_1"].append(float(not first))
        rows["caption"].append(f"thing {i // 2}")
    return rows


def pair_parquet(file: Path, rows: dict[str, list] | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(rows or pair_rows()), file)
    return file


def pair_folder(folder: Path, count: int = 24) -> Path:
    folder.mkdir()
    lines = []
    for i in range(count):
        (folder / f"win{i}.png").write_bytes(png(60, seed=i))
        (folder / f"lose{i}.png").write_bytes(png(200, (16, 24), seed=1000 + i))
        lines.append(json.dumps({"win": f"win{i}.png", "lose": f"lose{i}.png", "text": f"thing {i // 2}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def captioned_folder(folder: Path, count: int = 8) -> Path:
    """Images with captions, as Hugging Face image folders have them."""
    folder.mkdir()
    lines = []
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(20 + 25 * i, (16, 16), seed=i))
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"thing {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
