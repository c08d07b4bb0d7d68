"""A reward for class-conditional models: how sure a classifier is of the class that was asked for."""

from pathlib import Path

import torch
from torch import Tensor

from diffdistill.assets import checked_asset
from diffdistill.errors import DataError
from diffdistill.models.conv_net import load_conv_net
from diffdistill.rewards.protocol import Prompts


class ClassifierReward:
    """R(x, c) = log p(c | x), at most 0, by the Fashion-MNIST classifier, or a folder that
    examples/fashion_mnist/train_features.py wrote.

    With weight a the optimum is p(x | c) p(c | x)^a: classifier guidance, distilled. The bundled classifier's features
    also measure FID, which therefore flatters a student trained with this reward: judge it with other features.
    """

    name, differentiable, needs_prompt = "classifier", True, False

    def __init__(self, folder: Path | None = None):
        self.net, config = load_conv_net(folder or checked_asset("fashion_mnist_features"))
        self.version = f"classifier {config['sha256'][:12]}"
        self.shape = (config["image_channels"], config["image_size"], config["image_size"])

    def __call__(self, images: Tensor, prompts: Prompts = None) -> Tensor:
        """Images `(B, C, H, W)` of the classifier's size in [0, 1], labels `(B,)` -> `(B,)`; DataError for others."""
        if images.shape[1:] != self.shape:
            have, want = "x".join(map(str, images.shape[1:])), "x".join(map(str, self.shape))
            raise DataError(f"the reward classifier reads images of {want} and got {have}; choose another reward")
        if not isinstance(prompts, Tensor) or prompts.shape != (len(images),):
            raise DataError("the reward classifier needs one class label an image, a tensor (B,); give labels")
        log_probabilities = self.net(images.float() * 2 - 1).log_softmax(1)
        return log_probabilities.gather(1, prompts.to(images.device)[:, None]).squeeze(1)

    def to(self, device: str | torch.device) -> "ClassifierReward":
        self.net = self.net.to(device)
        return self
