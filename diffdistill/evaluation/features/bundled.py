"""Features that need no download: the bundled classifiers, and the pixels themselves."""

from typing import TYPE_CHECKING

from diffdistill.assets import checked_asset
from diffdistill.evaluation.features import Features

if TYPE_CHECKING:
    import torch

    from diffdistill.evaluation.extractors.base import FeatureExtractor


def fashion_mnist(detail: str | None, device: "torch.device") -> "FeatureExtractor":
    from diffdistill.evaluation.extractors.bundled import ClassifierFeatures

    return ClassifierFeatures(checked_asset("fashion_mnist_features"), device)


def emoji(detail: str | None, device: "torch.device") -> "FeatureExtractor":
    from diffdistill.evaluation.extractors.bundled import EmojiFeatures

    return EmojiFeatures(checked_asset("emoji_features"), device)


def pixels(detail: str | None, device: "torch.device") -> "FeatureExtractor":
    from diffdistill.evaluation.extractors.bundled import PixelFeatures

    return PixelFeatures()


FEATURES = Features("fashion_mnist", fashion_mnist), Features("emoji", emoji), Features("pixels", pixels)
