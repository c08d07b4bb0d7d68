"""Features that published figures are measured with: Inception of 2015, DINOv2, CLIP."""

from typing import TYPE_CHECKING

from diffdistill.evaluation.features import Features

if TYPE_CHECKING:
    import torch

    from diffdistill.evaluation.extractors.base import FeatureExtractor


def inception(detail: str | None, device: "torch.device") -> "FeatureExtractor":
    from diffdistill.evaluation.extractors.files import published_inception
    from diffdistill.evaluation.extractors.inception import find_weights

    return published_inception(find_weights(detail), device)


def dinov2(detail: str | None, device: "torch.device") -> "FeatureExtractor":
    from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures

    return HubFeatures(detail or DEFAULTS["dinov2"], device)


def clip(detail: str | None, device: "torch.device") -> "FeatureExtractor":
    from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures

    return HubFeatures(detail or DEFAULTS["clip"], device)


FEATURES = (
    Features("inception", inception, takes_detail=True),
    Features("dinov2", dinov2, takes_detail=True),
    Features("clip", clip, takes_detail=True),
)
