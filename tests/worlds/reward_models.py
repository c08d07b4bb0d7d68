"""Tiny reward models on disk, with random weights, and BLIP's forward written out from its definition."""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def write_tokenizer(folder: Path) -> int:
    """CLIP's tokenizer with an alphabet of single letters; returns the number of words."""
    vocabulary = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    return len(vocabulary)


def tiny_clip(folder: Path, projection: int = 16):
    """A transformers CLIPModel, saved in `folder` with its tokenizer."""
    import transformers

    words = write_tokenizer(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"hidden_act": "gelu"}  # as ViT-H-14; OpenAI's have quick_gelu, and say so in their config
    text = small | {"vocab_size": words, "max_position_embeddings": 16}
    text |= {"eos_token_id": words - 1, "bos_token_id": words - 2, "pad_token_id": words - 1}
    vision = small | {"image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():  # as initialised every picture has nearly the same features
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.constant_(model.logit_scale, 2.0)
    model.save_pretrained(folder)
    return model


def to_open_clip(model) -> dict[str, Tensor]:
    """The weights of a transformers CLIPModel by the names open_clip gives them."""
    ours = model.state_dict()
    made = {
        "logit_scale": ours["logit_scale"],
        "visual.proj": ours["visual_projection.weight"].T.contiguous(),
        "text_projection": ours["text_projection.weight"].T.contiguous(),
        "visual.class_embedding": ours["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": ours["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": ours["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "attn_mask": torch.zeros(16, 16),
    }
    for theirs, name in {
        "visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }.items():  # fmt: skip
        made |= {f"{theirs}.{kind}": ours[f"{name}.{kind}"] for kind in ("weight", "bias")}
    layers = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
              "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    for tower, prefix in {"vision": "visual.transformer", "text": "transformer"}.items():
        for index in range(2):
            here, there = f"{tower}_model.encoder.layers.{index}", f"{prefix}.resblocks.{index}"
            for kind in ("weight", "bias"):
                made |= {f"{there}.{a}.{kind}": ours[f"{here}.{b}.{kind}"] for a, b in layers.items()}
                parts = [ours[f"{here}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                made[f"{there}.attn.in_proj_{kind}"] = torch.cat(parts)
    return made


# ---- ImageReward in BLIP's own names: 2 layers each, width 16 (image) and 8 (text), heads of 4


def _linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 0.4 * torch.randn(rows, columns), f"{name}.bias": 0.1 * torch.randn(rows)}


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


def blip_weights(words: int = 40) -> dict[str, Tensor]:
    """Random weights as ImageReward.pt names them."""
    torch.manual_seed(0)
    v, t = "blip.visual_encoder", "blip.text_encoder"
    made = {
        f"{v}.cls_token": torch.randn(1, 1, 16), f"{v}.pos_embed": torch.randn(1, 5, 16),
        f"{v}.patch_embed.proj.weight": 0.1 * torch.randn(16, 3, 8, 8),
        f"{v}.patch_embed.proj.bias": torch.randn(16),
        f"{t}.embeddings.word_embeddings.weight": torch.randn(words, 8),
        f"{t}.embeddings.position_embeddings.weight": torch.randn(40, 8),
        f"{t}.embeddings.position_ids": torch.arange(40)[None],
        **_norm(f"{v}.norm", 16), **_norm(f"{t}.embeddings.LayerNorm", 8), **_linear("blip.vision_proj", 4, 16),
    }  # fmt: skip
    for i in range(2):
        b, e = f"{v}.blocks.{i}", f"{t}.encoder.layer.{i}"
        made |= _norm(f"{b}.norm1", 16) | _norm(f"{b}.norm2", 16)
        made |= _linear(f"{b}.attn.qkv", 48, 16) | _linear(f"{b}.attn.proj", 16, 16)
        made |= _linear(f"{b}.mlp.fc1", 32, 16) | _linear(f"{b}.mlp.fc2", 16, 32)
        for kind, width in (("attention", 8), ("crossattention", 16)):
            made |= _linear(f"{e}.{kind}.self.query", 8, 8) | _linear(f"{e}.{kind}.self.key", 8, width)
            made |= _linear(f"{e}.{kind}.self.value", 8, width) | _linear(f"{e}.{kind}.output.dense", 8, 8)
            made |= _norm(f"{e}.{kind}.output.LayerNorm", 8)
        made |= _linear(f"{e}.intermediate.dense", 12, 8) | _linear(f"{e}.output.dense", 8, 12)
        made |= _norm(f"{e}.output.LayerNorm", 8)
    for layer, (rows, columns) in {0: (1024, 8), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}.items():
        made |= _linear(f"mlp.layers.{layer}", rows, columns)
    return made


def blip_score(w: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ImageReward of preprocessed pixels (B, 3, 16, 16) and tokens (B, L), from the definition of ViT and BERT."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, 4)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, None if allowed is None else allowed[:, None, None, :].bool())
        return out.transpose(1, 2).flatten(2)

    v, t = "blip.visual_encoder", "blip.text_encoder"
    x = F.conv2d(pixels, w[f"{v}.patch_embed.proj.weight"], w[f"{v}.patch_embed.proj.bias"], stride=8)
    x = torch.cat([w[f"{v}.cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + w[f"{v}.pos_embed"]
    for i in range(2):
        b = f"{v}.blocks.{i}"
        q, k, value = linear(norm(x, f"{b}.norm1", 1e-6), f"{b}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, value), f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    seen = norm(x, f"{v}.norm", 1e-6)

    y = (
        w[f"{t}.embeddings.word_embeddings.weight"][ids]
        + w[f"{t}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    )
    y = norm(y, f"{t}.embeddings.LayerNorm", 1e-12)
    for i in range(2):
        e = f"{t}.encoder.layer.{i}"
        for kind, source, allowed in (("attention", None, mask), ("crossattention", seen, None)):
            s, keys = f"{e}.{kind}.self", y if source is None else source
            out = attend(linear(y, f"{s}.query"), linear(keys, f"{s}.key"), linear(keys, f"{s}.value"), allowed)
            y = norm(y + linear(out, f"{e}.{kind}.output.dense"), f"{e}.{kind}.output.LayerNorm", 1e-12)
        inner = F.gelu(linear(y, f"{e}.intermediate.dense"))
        y = norm(y + linear(inner, f"{e}.output.dense"), f"{e}.output.LayerNorm", 1e-12)
    score = y[:, 0]
    for layer in (0, 2, 4, 6, 7):
        score = linear(score, f"mlp.layers.{layer}")
    return (score.squeeze(1) - 0.16717362830052426) / 1.0333394966054072
