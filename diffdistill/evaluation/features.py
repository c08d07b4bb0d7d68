"""`load_features`: a feature extractor by name, path or Hub id."""

import difflib
from pathlib import Path

import torch

from diffdistill.assets import asset
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.extractors.bundled import ClassifierFeatures, EmojiFeatures, PixelFeatures
from diffdistill.evaluation.resize import MODES
from diffdistill.files import read_json

NAMES = ("fashion_mnist", "emoji", "pixels", "inception", "dinov2", "clip")


def _from_folder(folder: Path, device: torch.device) -> FeatureExtractor:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no readable config.json: features lie in config.json and model.safetensors ({error})"
        ) from error
    if config.get("architecture") == "ConvNet":
        return ClassifierFeatures(folder, device)
    if config.get("architecture") == "EmojiNet":
        return EmojiFeatures(folder, device)
    from diffdistill.evaluation.extractors.hub import HubFeatures

    return HubFeatures(str(folder), device)


def load_features(name: str, *, mode: str | None = None, device: str | torch.device = "cpu") -> FeatureExtractor:
    """The extractor that `name` means.

    Args:
        name: `fashion_mnist` and `emoji` (bundled, 128 features), `pixels`, `inception[:FILE]` (the 2015 graph,
            2048 features, as TorchScript or `.pth`, from FILE, the cache or the network), `dinov2[:MODEL]`,
            `clip[:MODEL]` (transformers, folder or Hub id), a file of TorchScript or of the weights of Inception v3,
            a folder with config.json and safetensors, or a Hub id `owner/name`.
        mode: resize where image sizes differ, `tf` or `clean`; None: the extractor's own (see resize.py).
        device: where the network runs; features come back as float64 on the CPU.

    Raises:
        ConfigError: an unknown name or mode. CheckpointError: weights that are missing or damaged.
    """
    if mode is not None and mode not in MODES:
        raise ConfigError(f"unknown resize mode '{mode}': allowed are {', '.join(MODES)}")
    extractor = _load(name, torch.device(device))
    if mode is not None:
        extractor.mode = mode
    return extractor


def _load(name: str, device: torch.device) -> FeatureExtractor:
    kind, _, detail = name.partition(":")
    if name == "fashion_mnist":
        return ClassifierFeatures(asset("fashion_mnist_features"), device)
    if name == "emoji":
        return EmojiFeatures(asset("emoji_features"), device)
    if name == "pixels":
        return PixelFeatures()
    if kind == "inception":
        from diffdistill.evaluation.extractors.files import published_inception
        from diffdistill.evaluation.extractors.inception import find_weights

        return published_inception(find_weights(detail or None), device)
    if kind in ("dinov2", "clip"):
        from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures

        return HubFeatures(detail or DEFAULTS[kind], device)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, device)
    if path.is_file():
        from diffdistill.evaluation.extractors.files import features_of_file

        return features_of_file(path, device)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from diffdistill.evaluation.extractors.hub import HubFeatures

        return HubFeatures(name, device)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f", did you mean '{near[0]}'?" if near else ""
    raise ConfigError(
        f"no feature extractor '{name}'{hint}: give one of {', '.join(NAMES)}, an existing file or folder, or a Hub id"
    )
