"""Train the small CLIP of the emoji (2103.00020): a transformers `CLIPModel` and its tokenizer; minutes on a core.

    OMP_NUM_THREADS=1 python examples/emoji/train_emoji_clip.py --out assets/emoji_clip

Its text tower is the text encoder of `builtin:emoji_teacher`, its similarity is CLIP score and a reward. A batch holds
both styles of each concept, so that the style's word matters in every row. Only the split `train` is seen.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from emoji_data import Emoji, emoji_rows
from emoji_tokens import LENGTH, make_tokenizer
from emoji_training import Log, images_of, moved, rate, say_float32, set_rate, sha256, write_json
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffdistill.rewards.preprocess import CLIP_MEAN, CLIP_STD
from diffdistill.rewards.weights import features_of

WIDTH, VISION_LAYERS, TEXT_LAYERS, PATCH, MERGES = 160, 5, 3, 8, 2500
PEAK_RATE, WARMUP, WEIGHT_DECAY, NOISE = 1e-3, 100, 0.1, 0.12
# Chances of: short name with its style, full name with its style, short name alone, full name alone.
CHANCES = (0.55, 0.25, 0.15, 0.05)


def variants(row: Emoji) -> list[str]:
    """The four captions of an image, in the order of `CHANCES`."""
    return [row.text, f"a {row.style} style emoji of {row.name}", row.plain, f"an emoji of {row.name}"]


def build(tokenizer: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": WIDTH // 32}
    common = {**shape, "projection_dim": WIDTH, "hidden_act": "gelu"}
    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "num_hidden_layers": TEXT_LAYERS}
    vision = {"image_size": 32, "patch_size": PATCH, "num_hidden_layers": VISION_LAYERS}
    config = CLIPConfig(text_config=common | text | marks, vision_config=common | vision, projection_dim=WIDTH)
    return CLIPModel(config)


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """`(N, LENGTH)` int64, padded and cut as a Stable Diffusion pipeline does."""
    found = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return found["input_ids"]


def pixels(images: Tensor) -> Tensor:
    """[0, 1] -> CLIP's normalisation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def seen(images: Tensor) -> Tensor:
    """uint8 -> moved a little, with noise of a random strength: what is scored later is generated, not drawn."""
    x = moved(images.float() / 255)
    return x + NOISE * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


def matching_loss(logits: Tensor, captions: Tensor) -> Tensor:
    """Both cross entropies of 2103.00020; equal captions share their weight."""
    target = (captions[:, None] == captions[None]).all(-1).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def features(model: Any, tokenizer: Any, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Normalised features of images and texts, `(N, WIDTH)` each."""
    pictures = [features_of(model.get_image_features(pixels(part.float() / 255))) for part in images.split(256)]
    words = features_of(model.get_text_features(tokens_of(tokenizer, texts)))
    return F.normalize(torch.cat(pictures)), F.normalize(words)


def figures(model: Any, tokenizer: Any, split: str) -> dict[str, float]:
    """Shares of images whose own caption is the nearest of the split's, is among the five nearest, and beats that in
    the other style; and whose plain caption is the nearest of the split's plain ones."""
    model.eval()
    rows, images = emoji_rows(split), images_of(split)
    texts = [row.text for row in rows]
    other = [text.replace(*pair) for text, pair in zip(texts, [_exchange(row) for row in rows], strict=True)]
    pictures, words = features(model, tokenizer, images, texts + other + [row.plain for row in rows])
    own, wrong, plain = (pictures @ part.T for part in words.split(len(rows)))
    above = (own > own.diagonal()[:, None]).sum(1)
    concept = plain.max(1).values <= plain.diagonal()
    found = {"top1": above < 1, "top5": above < 5, "style": own.diagonal() > wrong.diagonal(), "concept": concept}
    model.train()
    return {f"{split}_{name}": float(right.float().mean()) for name, right in found.items()}


def _exchange(row: Emoji) -> tuple[str, str]:
    first, second = ("noto", "twemoji") if row.style == "noto" else ("twemoji", "noto")
    return f"a {first} style", f"a {second} style"


def couples(rows: list[Emoji]) -> Tensor:
    """`(concepts, 2)`: the rows of each concept in either style, -1 where it is not there."""
    places: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(row.codepoint, [-1, -1])[row.style == "twemoji"] = index
    return torch.tensor(list(places.values()))


def train(steps: int, concepts: int, seed: int, out: Path, log: Log) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    rows, images = emoji_rows("train"), images_of("train")
    texts = [text for row in rows for text in variants(row)]
    tokenizer = make_tokenizer(texts, MERGES, out)
    tokens = tokens_of(tokenizer, texts).view(len(rows), len(CHANCES), LENGTH)
    model, both = build(tokenizer), couples(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        set_rate(optimizer, rate(step, steps, PEAK_RATE, WARMUP))
        index = both[torch.randperm(len(both))[:concepts]].flatten()
        index = index[index >= 0]
        captions = tokens[index, torch.multinomial(torch.tensor(CHANCES), len(index), replacement=True)]
        # Flash attention's backward is slow on a CPU: as much again as all the rest of a step.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(input_ids=captions, pixel_values=pixels(seen(images[index]))).logits_per_image
        loss = matching_loss(logits.float(), captions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        if (step + 1) % 100 == 0:
            log(
                step=step + 1,
                loss=loss.item(),
                scale=model.logit_scale.exp().item(),
                **figures(model, tokenizer, "held_out"),
            )
    return model.eval().requires_grad_(False), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/emoji_clip"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--concepts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(args.out / "training.jsonl")
    model, tokenizer = train(args.steps, args.concepts, args.seed, args.out, log)
    model.half().save_pretrained(args.out, safe_serialization=True)
    model.float()  # the figures are those of the rounded weights
    say_float32(args.out / "config.json")
    preprocessor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    write_json(args.out / "preprocessor_config.json", preprocessor | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD})
    results = figures(model, tokenizer, "held_out") | figures(model, tokenizer, "test")
    log(**results)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    digest = sha256(args.out / "model.safetensors")
    write_json(args.out / "diffdistill.json", {"sha256": digest, **results, "training": settings})


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
