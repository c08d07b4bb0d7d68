"""What the log says of a discriminator: its accuracy, counted by hand."""

from types import SimpleNamespace

import pytest
import torch

from diffdistill.matching.discriminators import AdversarialTerm
from diffdistill.matching.settings import Adversarial


@pytest.mark.parametrize(
    ("real", "fake", "accuracy"),
    [
        (
            [1.0, 2.0, 3.0, -1.0],
            [-1.0, 1.0, -2.0, 2.0],
            (3 + 2) / 8,
        ),  # three real ones seen as real, two false as false
        ([1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], 1.0),
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], 0.5),
        ([-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0], 0.0),
    ],
)
def test_the_accuracy_counts_what_is_right_on_both_sides(real, fake, accuracy):
    logits = torch.tensor(real + fake)[:, None]
    term = AdversarialTerm.__new__(AdversarialTerm)
    term.settings, term.trains_features = Adversarial(weight=1.0), False
    term.feature_network = SimpleNamespace(features=lambda x_t, sigma, cond, taps: [x_t])
    term.discriminator = lambda features: logits
    term.discriminator.taps = ()
    images = torch.zeros(4, 1, 2, 2)
    _, metrics = term.loss(images, images, torch.ones(4), None, (images, images))
    assert float(metrics["discriminator/accuracy"]) == pytest.approx(accuracy)
