"""ImageReward (2304.05977): BLIP's text encoder looks at the picture, a linear head scores its first token.

The weights are published for BLIP's own code (`ImageReward.pt`). They are renamed into transformers' BLIP here; every
tensor must find its place with its shape, or loading stops. The renaming and the score were compared with the package
`image-reward` 1.5 on a small network of random weights (equal to the last bit); the published file was not at hand.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import CheckpointError
from diffdistill.files import PICKLES
from diffdistill.rewards.aesthetic import read_head
from diffdistill.rewards.clip import read_tokenizer
from diffdistill.rewards.preprocess import preprocess
from diffdistill.rewards.protocol import Prompts, texts_of
from diffdistill.rewards.weights import beside, digest, fetched, fill, find_file, read_tensors, transformers

HUB, TOKENIZER = "zai-org/ImageReward", "google-bert/bert-base-uncased"
HEAD_WIDTH = 64  # of an attention head: ViT-L has 16 in 1024, BERT 12 in 768
WORDS = 35  # texts are padded and cut to this many tokens
# The score of the training set has mean 0 and standard deviation 1 after this.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
# Names of timm's ViT, in order, to those of transformers.
VISION = {
    r"^cls_token$": "embeddings.class_embedding",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^norm\.": "post_layernorm.",
    r"^blocks\.(\d+)\.": r"encoder.layers.\1.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.proj\.": ".self_attn.projection.",
    r"\.attn\.": ".self_attn.",
}
# Towers of the pretraining that the score does not use, and a buffer of old versions.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class Blip(nn.Module):
    """BLIP's image encoder, and its text encoder with cross-attention to the image."""

    def __init__(self, config: Any):
        super().__init__()
        package = transformers()
        self.visual_encoder = package.BlipVisionModel(config.vision_config)
        text = package.models.blip.modeling_blip_text.BlipTextModel
        self.text_encoder = text(config.text_config, add_pooling_layer=False)


def vision_name(name: str) -> str:
    for pattern, replacement in VISION.items():
        name = re.sub(pattern, replacement, name)
    return name


def blip_of_original(tensors: dict[str, Tensor], file: Path, head_width: int = HEAD_WIDTH) -> Blip:
    """The encoders from BLIP's names (`blip.visual_encoder.*`, `blip.text_encoder.*`), sizes read from the shapes."""
    encoders: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tower, _, inner = name.removeprefix("blip.").partition(".")
        if not name.startswith("mlp.") and not name.startswith(UNUSED):
            encoders[f"{tower}.{vision_name(inner) if tower == 'visual_encoder' else inner}"] = tensor.float()
    try:
        config = configuration(encoders, head_width)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"'{file}' is no ImageReward: {error} is missing; give the file as published") from None
    blip = Blip(config)
    fill(blip, encoders, file)
    return blip.eval().requires_grad_(False)


def configuration(tensors: dict[str, Tensor], head_width: int) -> Any:
    """The BlipConfig of renamed tensors."""
    patch = tensors["visual_encoder.embeddings.patch_embedding.weight"]
    positions = tensors["visual_encoder.embeddings.position_embedding"].shape[1]
    words = tensors["text_encoder.embeddings.word_embeddings.weight"]

    def depth(prefix: str) -> int:
        return 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in tensors if n.startswith(prefix))

    vision = {
        "hidden_size": len(patch), "patch_size": patch.shape[-1], "num_attention_heads": len(patch) // head_width,
        "image_size": round((positions - 1) ** 0.5) * patch.shape[-1], "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        "intermediate_size": len(tensors["visual_encoder.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": depth("visual_encoder.encoder.layers."),
    }  # fmt: skip
    text = {
        "vocab_size": len(words), "hidden_size": words.shape[1], "num_attention_heads": words.shape[1] // head_width,
        "encoder_hidden_size": len(patch), "layer_norm_eps": 1e-12, "hidden_act": "gelu", "is_decoder": True,
        "intermediate_size": len(tensors["text_encoder.encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(tensors["text_encoder.embeddings.position_embeddings.weight"]),
        "num_hidden_layers": depth("text_encoder.encoder.layer."), "bos_token_id": None, "sep_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    return transformers().BlipConfig(text_config=text, vision_config=vision)


class ImageReward:
    """R(x, c) = (head(BLIP(x, c)) - 0.167) / 1.033, about standard normal on the authors' data."""

    name, differentiable, needs_prompt = "imagereward", True, True

    def __init__(self, blip: Blip, head: nn.Module, tokenizer: Any, version: str, batch_size: int = 16):
        self.blip, self.head, self.tokenizer = blip, head, tokenizer
        self.version, self.batch_size = version, batch_size
        self.size = int(blip.visual_encoder.config.image_size)

    @classmethod
    def load(cls, where: str | None = None, batch_size: int = 16) -> "ImageReward":
        """From a folder with ImageReward.pt (or .safetensors) and BERT's tokenizer, or from the Hub."""
        folder = fetched("imagereward", where, HUB, ["ImageReward.pt"])
        file = find_file("imagereward", folder, ["ImageReward.safetensors", *(f"ImageReward{end}" for end in PICKLES)])
        tensors = read_tensors(file)
        blip = blip_of_original(tensors, file)
        mlp = {name: tensor for name, tensor in tensors.items() if name.startswith("mlp.")}
        head = read_head(mlp, "mlp.layers.", int(blip.text_encoder.config.hidden_size), file)
        tokens = beside(folder, TOKENIZER, ["tokenizer*", "vocab.txt"], ("tokenizer.json", "vocab.txt"))
        return cls(blip, head, read_tokenizer(tokens), f"imagereward {digest([file])}", batch_size)

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        """Images `(B, 1 or 3, H, W)` in [0, 1] and B texts -> `(B,)`, attached to the images."""
        texts = texts_of(prompts, len(images), self.name)
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt")
        chunks = (part.split(self.batch_size) for part in (images, tokens["input_ids"], tokens["attention_mask"]))
        return torch.cat([self._score(*part) for part in zip(*chunks, strict=True)])

    def _score(self, images: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        pixels = preprocess(images, self.size)
        picture = self.blip.visual_encoder(pixel_values=pixels).last_hidden_state
        text = self.blip.text_encoder(
            input_ids=words.to(pixels.device), attention_mask=mask.to(pixels.device), encoder_hidden_states=picture
        )
        scores: Tensor = self.head(text.last_hidden_state[:, 0])
        return (scores.squeeze(1) - MEAN) / STD

    def to(self, device: str | torch.device) -> "ImageReward":
        self.blip, self.head = self.blip.to(device), self.head.to(device)
        return self
