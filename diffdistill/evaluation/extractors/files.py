"""What a file of the user's is: TorchScript, or the weights of Inception v3."""

from pathlib import Path

import torch

from diffdistill.errors import CheckpointError
from diffdistill.evaluation.extractors import inception, inception_weights
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.extractors.inception import InceptionFeatures
from diffdistill.evaluation.extractors.inception_weights import InceptionWeights
from diffdistill.evaluation.extractors.torchscript import TorchScriptFeatures, is_torchscript
from diffdistill.files import sha256
from diffdistill.registry import check_consent


def features_of_file(path: Path, device: torch.device) -> FeatureExtractor:
    """The extractor of `--features FILE`; CheckpointError for a file of anything else, ConfigError for code that the
    user has not allowed.
    """
    if not is_torchscript(path):
        return InceptionWeights(path, device)
    # The published file resizes and classifies by itself when it is called as a user's network is.
    if sha256(path) == inception.SHA256:
        return InceptionFeatures(path, device)
    check_consent(str(path))
    return TorchScriptFeatures(path, device)


def published_inception(path: Path, device: torch.device) -> FeatureExtractor:
    """The extractor of `--features inception:FILE`: the network of published FIDs, in either form, and no other."""
    if is_torchscript(path):
        return InceptionFeatures(path, device)
    digest = sha256(path)
    if digest != inception_weights.SHA256:
        raise CheckpointError(
            f"{path} is not Inception of 2015: its SHA-256 is {digest}, expected {inception.SHA256} "
            f"({inception.FILE}) or {inception_weights.SHA256} ({inception_weights.FILES[0]}); "
            "other weights are given as --features FILE"
        )
    return InceptionWeights(path, device)
