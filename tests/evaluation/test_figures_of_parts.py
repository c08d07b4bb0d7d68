"""Figures where not all is looked at alike: parts of a set, batches, few images, more images than texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.load import fingerprint
from diffdistill.evaluation import Evaluator, evaluate_images, reference
from diffdistill.evaluation.arrays import Estimate
from diffdistill.evaluation.batches import labelled
from diffdistill.evaluation.extractors.bundled import PixelFeatures
from diffdistill.evaluation.reference import load_reference


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))


def pictures(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 6, 6), generator=generator, dtype=torch.uint8)


def image_set(n: int, seed: int = 0) -> ImageSet:
    images = pictures(n, seed)
    return ImageSet(images, None, None, None, f"{n} pictures", fingerprint(images.numpy(), None))


def pixels() -> PixelFeatures:
    return PixelFeatures((4, 4), channels=1)


def test_the_floor_compares_images_with_others() -> None:
    found = evaluate_images(pictures(30, 1), image_set(100), metrics=["fid"], extractor=pixels(), resamples=0)
    floor = found["metrics"]["fid"]["floor"]
    assert (floor["n"], floor["n_reference"]) == (30, 70)


def test_precision_and_recall_are_of_equal_numbers() -> None:
    found = evaluate_images(pictures(30, 1), image_set(100), metrics=["prdc"], extractor=pixels(), resamples=0)
    assert (found["metrics"]["prdc"]["n"], found["metrics"]["prdc"]["n_reference"]) == (30, 30)


def test_the_error_of_fid_is_that_of_all_images_though_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images of another law, where the error falls with the root of their number."""

    def error() -> float:
        found = evaluate_images(
            pictures(1600, 1) // 2, image_set(1600), metrics=["fid"], extractor=pixels(), resamples=200, floor=False
        )
        return float(found["metrics"]["fid"]["standard_error"])

    of_all = error()
    monkeypatch.setattr(reference, "SAMPLE_ENTRIES", 400 * 16)
    monkeypatch.setattr("diffdistill.evaluation.evaluator.sample_rows", lambda dim: 400)
    assert error() / of_all == pytest.approx(1, abs=0.35)  # of a quarter of the images it were twice as large


def test_labels_go_with_their_images_through_batches() -> None:
    images, labels = pictures(7, 0), torch.arange(7)
    found = list(labelled([images[:3], images[3:5], images[5:]], labels, 6))
    assert [own.tolist() for _, own in found if own is not None] == [[0, 1, 2], [3, 4], [5]]


OFF = """
import torch
from diffdistill.evaluation.metrics import Metric


def off(images, texts):
    return (images.double().mean((1, 2, 3)) - torch.tensor([float(text) for text in texts])).abs()


METRIC = Metric(name="off", label="Off", score=off, needs=("texts",))
"""


@pytest.mark.parametrize("batch", [4, 100])
def test_each_image_is_scored_for_its_own_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consent: None, batch: int
) -> None:
    """Text i mod 3, over batches that do not end with the texts; an image's grey value is its text's number."""
    (tmp_path / "off.py").write_text(OFF)
    monkeypatch.setattr("diffdistill.evaluation.evaluator.large_batch", lambda device: batch)
    images = (torch.arange(11, dtype=torch.uint8) % 3)[:, None, None, None].expand(-1, 1, 4, 4)
    found = Evaluator(metrics=[f"{tmp_path / 'off.py'}:METRIC"])(images, texts=["0", "1", "2"])
    assert found["metrics"]["off"]["value"] == 0


def test_kept_features_are_of_the_images_that_they_are_said_to_be_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SAMPLE_ENTRIES", 20 * 16)
    images, extractor = image_set(90), pixels()
    kept, _ = load_reference(images, extractor)
    assert kept.features is not None
    assert kept.index is not None
    assert len(set(kept.index.tolist())) == 20
    assert torch.equal(kept.features.double(), extractor(images.images[kept.index]).double())


def test_fid_of_fewer_images_than_features_is_that_of_their_covariances() -> None:
    few, other = image_set(9), pictures(40, 1)
    found = evaluate_images(other, few, metrics=["fid"], extractor=pixels(), resamples=0, floor=False)
    x, y = (pixels()(images).double().numpy() for images in (few.images, other))
    product = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T))
    spread = np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * np.sqrt(np.clip(product.real, 0, None)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + spread
    assert found["metrics"]["fid"]["value"] == pytest.approx(expected, rel=1e-6)


def test_the_interval_holds_95_percent_of_a_normal_law() -> None:
    assert Estimate(2.0, 0.5).record()["interval"] == pytest.approx([2 - 0.98, 2 + 0.98])
