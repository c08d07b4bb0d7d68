"""CLIP score: how well images fit their texts."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import Array, Estimate, as_features
from diffdistill.evaluation.extractors.hub import DEFAULTS, HubFeatures


def clip_score(
    images: Array,
    texts: Array | Sequence[str],
    model: str | Path | HubFeatures = DEFAULTS["clip"],
    *,
    device: str | torch.device = "cpu",
) -> Estimate:
    """`100 max(cos(image, text), 0)`, the mean over pairs (2104.08718 with w = 100, as torchmetrics) and its error.

    Args:
        images: uint8 `(N, 3, H, W)`; or CLIP features `(N, d)`, and then `texts` are features too.
        texts: N texts, or features `(N, d)`.
        model: folder or Hub id of a transformers CLIP, or an extractor that `load_features("clip:...")` returned.

    Of features at 60 degrees and at 0 degrees, cosines of 1/2 and 1:

    >>> import torch
    >>> images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 3**0.5], [0.0, 2.0]])
    >>> round(float(clip_score(images, texts)), 3)
    75.0

    Raises:
        DataError: numbers of images and texts differ, or features are not finite. CheckpointError: no such model.
    """
    if len(images) != len(texts):
        raise DataError(f"{len(images)} images and {len(texts)} texts: a CLIP score needs one text for each image")
    if isinstance(texts, Sequence):
        clip = model if isinstance(model, HubFeatures) else HubFeatures(str(model), torch.device(device))
        images, texts = clip(torch.as_tensor(images)), clip.embed_texts(texts)
    return score_of(cosines(as_features(images, "image features", 1), as_features(texts, "text features", 1)))


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine `(N,)` of each image's features with its text's, both `(N, d)`."""
    if images.shape != texts.shape:
        raise DataError(f"features of images and texts have shapes {tuple(images.shape)} and {tuple(texts.shape)}")
    return torch.nn.functional.cosine_similarity(images, texts)


def score_of(cosines: Tensor) -> Estimate:
    """The CLIP score of cosines `(N,)`."""
    return Estimate.mean_of(100 * cosines.clamp(min=0))
