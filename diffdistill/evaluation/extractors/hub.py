"""CLIP and self-supervised ViTs through transformers, from a local folder or a Hub id; safetensors only."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.evaluation.extractors.base import FeatureExtractor, large_batch
from diffdistill.evaluation.resize import resize, with_channels
from diffdistill.files import expanded, is_hub_id, read_json, sha256
from diffdistill.loading import load_whole

# FD-DINOv2 (2306.04675) uses the large model; CMMD (2401.09603) CLIP at 336 pixels.
DEFAULTS = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14-336"}
# Of a ViT only the last norm is read; what its checkpoints have or lack above it is not.
UNUSED = r"^(pooler|classifier)\."
VITS = ("dinov2", "dinov2_with_registers", "vit")
DINOV2_SIZE = 224  # trained at 518, measured at 224 (2306.04675)
CLIP_SCALE = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_SCALE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILES = ["*.json", "*.safetensors", "*.txt"]


def model_folder(name: str) -> Path:
    """The folder of a model: a local one, `builtin:NAME`, or a snapshot of a Hub id; CheckpointError without any."""
    if is_builtin(name):
        return resolve_builtin(name)
    if expanded(name).is_dir():
        return expanded(name)
    if not is_hub_id(name):
        raise CheckpointError(
            f"there is no folder '{name}': give a folder with config.json and safetensors weights, builtin:NAME or a "
            "Hub id OWNER/NAME"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # the Hub raises many kinds, offline included; all of them mean "not available"
        raise CheckpointError(
            f"'{name}' is no local folder and cannot be fetched from the Hub ({type(error).__name__}): download it "
            "elsewhere (config.json, *.safetensors, tokenizer files) and give the folder's path"
        ) from error


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the one weight file, or of the digests of the shards in the order of their names."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(f"{folder} has no .safetensors file: pickled weights are not read, convert them first")
    digests = [sha256(shard) for shard in shards]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("CLIP and DINOv2 features need transformers: pip install 'diffdistill[text]'") from error
    return transformers


def _tensor(output: Any) -> Tensor:
    """transformers < 5 returns the projected features, later versions an object that holds them."""
    return output if isinstance(output, Tensor) else output.pooler_output


class HubFeatures(FeatureExtractor):
    """Class token of a ViT (after the last norm), or projected image features of a CLIP, by the folder's `model_type`.

    Images are scaled as the model was trained: shorter side to `size`, centre cut out, channels normalised.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        folder, transformers = model_folder(name), _transformers()
        try:
            config = read_json(folder / "config.json")
            self.kind = config["model_type"]
            self.sha256 = weights_sha256(folder)
            if self.kind == "clip":
                self.model = load_whole(transformers.CLIPModel, folder)
            elif self.kind in VITS:
                self.model = load_whole(transformers.AutoModel, folder, UNUSED, trust_remote_code=False)
            else:
                raise ConfigError(f"{name} is a '{self.kind}' model: features are read from clip, {', '.join(VITS)}")
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} is not a model that transformers can open: {error}") from error
        self.model.eval().requires_grad_(False).to(device)
        self.folder, self.device, self.batch_size = folder, device, large_batch(device)
        self.id = f"{self.kind}:{Path(name).name if Path(name).is_dir() else name}"
        side = self._side(config)
        self.size, self.dim = (side, side), config["projection_dim"] if self.kind == "clip" else config["hidden_size"]
        mean, std = self._scale()
        self.mean, self.std = (torch.tensor(x, device=device)[:, None, None] * 255 for x in (mean, std))

    def _side(self, config: dict[str, Any]) -> int:
        if self.kind == "clip":
            return int(self.model.config.vision_config.image_size)
        side = config["image_size"]
        return min(side, DINOV2_SIZE) if self.kind.startswith("dinov2") else side

    def _scale(self) -> tuple[Sequence[float], Sequence[float]]:
        file = self.folder / "preprocessor_config.json"
        if file.is_file():
            given = read_json(file)
            return given["image_mean"], given["image_std"]
        return CLIP_SCALE if self.kind == "clip" else IMAGENET_SCALE

    def prepare(self, images: Tensor) -> Tensor:
        x = with_channels(self.placed(images), 3)
        assert self.size is not None
        (height, width), side = x.shape[2:], self.size[0]
        if height != width:
            scale = side / min(height, width)
            x = resize(
                x, (max(side, int(height * scale)), max(side, int(width * scale))), self.resize_used(height, width)
            )
            top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
            x = x[:, :, top : top + side, left : left + side]
        return resize(x, self.size, self.resize_used(height, width)).to(self.device)

    def embed(self, images: Tensor) -> Tensor:
        pixels = (images - self.mean) / self.std
        if self.kind == "clip":
            return _tensor(self.model.get_image_features(pixel_values=pixels))
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]

    @cached_property
    def tokenizer(self) -> Any:
        return _transformers().AutoTokenizer.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Projected text features `(N, dim)` of a CLIP, float64; texts are cut at the model's length."""
        if self.kind != "clip":
            raise ConfigError(f"'{self.id}' has no text side: a CLIP score needs a CLIP model")
        length = self.model.config.text_config.max_position_embeddings
        chunks = []
        for start in range(0, len(texts), self.batch_size):
            part = list(texts[start : start + self.batch_size])
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt")
            tokens = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
            chunks.append(_tensor(self.model.get_text_features(**tokens)).cpu().double())
        return torch.cat(chunks)
