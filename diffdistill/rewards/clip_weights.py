"""Where the weights of a CLIP lie, and what scales its cosine. No torch."""

from typing import NamedTuple

TOKENIZER_FILES = ["tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json"]
FOLDER = ["config.json", "*.safetensors", "preprocessor_config.json", *TOKENIZER_FILES]
LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class ClipWeights(NamedTuple):
    """model, tokenizer: Hub ids; files: what is needed of the model; scale: of the cosine, None: exp(logit_scale)."""

    model: str
    tokenizer: str
    files: list[str]
    scale: float | None
