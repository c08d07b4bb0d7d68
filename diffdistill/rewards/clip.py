"""Rewards that are the similarity of a CLIP: CLIP score, PickScore, HPSv2.1."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from diffdistill.errors import CheckpointError
from diffdistill.files import PICKLES
from diffdistill.loading import load_whole
from diffdistill.machine import send
from diffdistill.rewards.clip_weights import TOKENIZER_FILES, ClipWeights
from diffdistill.rewards.open_clip import VIT_H_14, clip_of_open_clip
from diffdistill.rewards.preprocess import preprocess
from diffdistill.rewards.protocol import Prompts, texts_of
from diffdistill.rewards.weights import beside, digest, features_of, fetched, find_file, transformers

KEPT_TEXTS = 10_000  # features of so many take 40 MB


class ClipReward:
    """R(x, c) = scale cos(f(x), g(c)), features of a CLIP's image and text towers.

    Images of any size, shorter side brought to the tower's; gradients reach them. Features of texts are kept, for a
    training asks for the same prompts again and again.
    """

    differentiable, needs_prompt = True, True

    def __init__(self, name: str, model: Any, tokenizer: Any, scale: float | None, version: str, batch_size: int = 16):
        self.name, self.version, self.batch_size = name, version, batch_size
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.scale = float(model.logit_scale.detach().exp()) if scale is None else scale
        self.size = int(model.config.vision_config.image_size)
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def load(cls, name: str, weights: ClipWeights, where: str | None = None, batch_size: int = 16) -> "ClipReward":
        """A `clip`, `pickscore` or `hps_v2`, from a folder or Hub id. CheckpointError if its weights are absent."""
        folder = fetched(name, where, weights.model, weights.files)
        if name == "hps_v2" and not (folder / "config.json").is_file():
            file = find_file(name, folder, ["HPS_v2.1*.safetensors", *(f"HPS_v2.1*{end}" for end in PICKLES)])
            model, files = clip_of_open_clip(file, VIT_H_14), [file]
        else:
            model, files = read_clip(folder), sorted(folder.glob("*.safetensors"))
        tokens = beside(folder, weights.tokenizer, TOKENIZER_FILES, ("tokenizer.json", "vocab.json"))
        return cls(name, model, read_tokenizer(tokens), weights.scale, f"{name} {digest(files)}", batch_size)

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        """Images `(B, 1 or 3, H, W)` in [0, 1] and B texts -> `(B,)`, attached to the images."""
        texts = self.text_features(texts_of(prompts, len(images), self.name))
        return self.scale * cosine_similarity(self.image_features(images), texts)

    def image_features(self, images: Tensor) -> Tensor:
        """`(B, d)`, projected, not normalised."""
        dtype = next(self.model.parameters()).dtype
        parts = [
            features_of(self.model.get_image_features(pixel_values=preprocess(part, self.size).to(dtype)))
            for part in images.split(self.batch_size)
        ]
        return torch.cat(parts).float()

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """`(B, d)`, normalised; a text is embedded once, until there are too many."""
        device = next(self.model.parameters()).device
        if len(self._texts) > KEPT_TEXTS:
            self._texts.clear()
        new = sorted(set(texts) - self._texts.keys())
        length = int(self.model.config.text_config.max_position_embeddings)
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt")
            features = self.model.get_text_features(
                input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
            )
            self._texts |= dict(zip(part, normalize(features_of(features).float()).cpu(), strict=True))
        return send(torch.stack([self._texts[text] for text in texts]), device)

    def to(self, device: str | torch.device) -> "ClipReward":
        self.model = self.model.to(device)
        return self


def read_clip(folder: Path) -> Any:
    """A transformers CLIPModel, safetensors only; CheckpointError if the folder holds none."""
    return load_whole(transformers().CLIPModel, folder)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; CheckpointError if there is none."""
    try:
        return transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"'{folder}' has no tokenizer ({error}); put tokenizer.json, or vocab.json and merges.txt, there"
        ) from error
