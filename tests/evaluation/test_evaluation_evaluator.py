"""`Evaluator`: protocol, caching, invariances and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.load import fingerprint
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation import Evaluator, evaluate_images, frechet_distance, load_features
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.extractors.bundled import PixelFeatures
from diffdistill.evaluation.frechet import fit
from diffdistill.evaluation.statistics import Statistics


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(n: int, seed: int, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, size, size), generator=generator, dtype=torch.uint8)


def image_set(n: int = 300, seed: int = 0) -> ImageSet:
    images, labels = pictures(n, seed), torch.arange(n) % 3
    return ImageSet(images, labels, None, ("a", "b", "c"), "pictures", fingerprint(images.numpy(), labels.numpy()))


def pixels() -> PixelFeatures:
    return PixelFeatures((4, 4), channels=1)


ALL = ("fid", "kid", "prdc", "per_class_fid", "neighbours")


def test_the_result_carries_its_protocol_and_is_json():
    reference, extractor = image_set(), pixels()
    labels = torch.arange(120) % 3
    result = evaluate_images(pictures(120, 1), reference, metrics=ALL, extractor=extractor, labels=labels, seed=5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    protocol = result["protocol"]
    assert protocol["num_images"] == 120
    assert protocol["features"] == {"id": extractor.id, "sha256": extractor.sha256, "dim": 16}
    assert protocol["reference"] == {"name": "pictures", "fingerprint": reference.fingerprint, "num_images": 300,
                                     "resize": "clean"}  # fmt: skip
    assert (protocol["resize"], protocol["seed"]) == ("clean", 5)
    assert protocol["backend"].startswith("diffdistill ")
    for entry in result["metrics"].values():
        assert {"n", "n_reference", "backend"} <= entry.keys()
    fid = result["metrics"]["fid"]
    assert fid["interval"][0] < fid["value"] < fid["interval"][1]
    assert fid["floor"]["n"] == 120
    assert fid["clipped"] == 0
    assert set(result["metrics"]["per_class_fid"]["classes"]) == {"a", "b", "c"}


def test_fid_is_the_frechet_distance_of_the_features():
    reference, extractor, images = image_set(), pixels(), pictures(100, 2)
    result = evaluate_images(images, reference, extractor=extractor)
    expected = frechet_distance(extractor(reference.images), extractor(images))
    assert result["metrics"]["fid"]["value"] == pytest.approx(expected, rel=1e-12)


def test_the_callers_batches_change_nothing():
    evaluator = Evaluator(image_set(), load_features("fashion_mnist"), ("fid", "kid", "prdc"))
    evaluator.extractor.batch_size = 32
    images = pictures(100, 3)
    whole = evaluator(images)["metrics"]
    assert evaluator(images.split(7))["metrics"] == whole
    assert evaluator((part, None) for part in images.split(64))["metrics"] == whole


def test_the_order_of_the_images_changes_nothing():
    evaluator, images = Evaluator(image_set(), "fashion_mnist"), pictures(400, 3)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    value = evaluator(images)["metrics"]["fid"]["value"]
    assert evaluator(images[order])["metrics"]["fid"]["value"] == pytest.approx(value, rel=1e-12)


def test_only_the_first_images_are_measured():
    evaluator = Evaluator(image_set(), pixels())
    images = pictures(100, 4)
    assert evaluator(images.split(30), num_images=50)["metrics"] == evaluator(images[:50])["metrics"]
    with pytest.raises(DataError, match="500 images were asked for and there are 100"):
        evaluator(images, num_images=500)


def test_no_more_is_drawn_from_the_generator_than_was_asked_for():
    drawn = []

    def batches() -> Iterator[Tensor]:
        for seed in range(10):
            drawn.append(seed)
            yield pictures(20, seed)

    Evaluator(image_set(), pixels())(batches(), num_images=40)
    assert drawn == [0, 1]


class Counting(PixelFeatures):
    seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        type(self).seen += len(images)
        return super().__call__(images)


def test_the_reference_is_computed_once_and_kept_on_disk(cache: Path):
    Counting.seen = 0
    first = Evaluator(image_set(), Counting((4, 4), 1), ("fid", "kid", "prdc"))(pictures(50, 5))
    assert Counting.seen == 350
    second = Evaluator(image_set(), Counting((4, 4), 1), ("fid", "kid", "prdc"))(pictures(50, 5))
    assert Counting.seen == 400
    assert first["metrics"] == second["metrics"]
    Evaluator(image_set(seed=9), Counting((4, 4), 1))
    assert Counting.seen == 700
    assert len(list((cache / "references").iterdir())) == 2


def test_a_damaged_cache_is_computed_again(cache: Path):
    first = Evaluator(image_set(), pixels())(pictures(50, 5))
    (file,) = (cache / "references").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert Evaluator(image_set(), pixels())(pictures(50, 5))["metrics"] == first["metrics"]


@pytest.mark.parametrize("place", [9, 40, 200, 420, 460, -1, -900, -4000])
def test_one_flipped_bit_of_a_cache_is_noticed(cache: Path, place: int):
    first = Evaluator(image_set(), pixels())(pictures(50, 5))
    (file,) = (cache / "references").iterdir()
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    assert Evaluator(image_set(), pixels())(pictures(50, 5))["metrics"] == first["metrics"]
    assert file.read_bytes() != content


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "file"))
    result = Evaluator(image_set(), pixels())(pictures(50, 5))
    assert "could not be kept" in result["warnings"][0]


def test_few_reference_images_take_the_exact_path_from_the_cache_too():
    reference, images = image_set(n=12), pictures(200, 6)
    first = Evaluator(reference, pixels())(images)
    second = Evaluator(reference, pixels())(images)
    assert first["metrics"]["fid"]["value"] == pytest.approx(second["metrics"]["fid"]["value"], rel=1e-9)
    assert any("12 images for 16 features" in text for text in first["warnings"])


def test_statistics_are_a_reference_for_fid_only():
    reference, extractor, images = image_set(), pixels(), pictures(100, 7)
    statistics = Statistics(fit(extractor(reference.images)), extractor.id, extractor.sha256, source="s.npz")
    from_images = Evaluator(reference, extractor)(images)["metrics"]["fid"]["value"]
    result = Evaluator(statistics, extractor)(images)
    assert result["metrics"]["fid"]["value"] == pytest.approx(from_images, rel=1e-12)
    assert result["metrics"]["fid"]["floor"] is None
    with pytest.raises(ConfigError, match="holds statistics only, enough for fid"):
        Evaluator(statistics, extractor, ("kid",))(images)
    with pytest.raises(DataError, match="was made by"):
        Evaluator(statistics, PixelFeatures((2, 8), 1))


def test_images_of_several_sizes_need_a_resize_mode():
    batches = [pictures(20, 0), pictures(20, 1, size=9)]
    with pytest.raises(DataError, match="have sizes 6x6 and 9x9"):
        Evaluator(image_set(), pixels())(batches)
    result = Evaluator(image_set(), pixels(), mode="clean")(batches)
    assert result["protocol"]["num_images"] == 40


def test_rgb_among_gray_images_is_no_obstacle():
    result = Evaluator(image_set(), pixels())([pictures(20, 0), pictures(20, 1).expand(-1, 3, -1, -1)])
    assert result["protocol"]["num_images"] == 40


def test_a_different_size_is_a_warning():
    result = Evaluator(image_set(), pixels())(pictures(50, 8, size=12))
    assert any("the images are 1x12x12" in text for text in result["warnings"])


def test_the_resize_mode_is_in_the_protocol_and_in_the_number():
    images = pictures(60, 9)
    clean, tf = (Evaluator(image_set(), pixels(), mode=mode)(images) for mode in ("clean", "tf"))
    assert (clean["protocol"]["resize"], tf["protocol"]["resize"]) == ("clean", "tf")
    assert clean["metrics"]["fid"]["value"] != tf["metrics"]["fid"]["value"]


def test_the_order_of_images_decides_no_figure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffdistill.evaluation.metrics.prdc.LIMIT", 40)
    reference, images = image_set(90), pictures(90, 1)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    evaluator = Evaluator(reference, load_features("fashion_mnist"), ("kid", "prdc", "is"), resamples=0)
    one, other = (evaluator(part)["metrics"] for part in (images, images[order]))
    assert one == other
    turned = ImageSet(reference.images[order], None, None, None, "turned", "0" * 64)
    again = Evaluator(turned, load_features("fashion_mnist"), ("kid", "prdc", "is"), resamples=0, floor=False)
    values = [
        [entry.get(key) for key in ("value", "recall", "coverage")] for entry in again(images)["metrics"].values()
    ]
    assert values == [[entry.get(key) for key in ("value", "recall", "coverage")] for entry in one.values()]


@pytest.mark.parametrize(("metric", "count"), [("fid", 1), ("kid", 3), ("prdc", 5), ("neighbours", 1)])
def test_a_reference_of_too_few_images_is_named(metric, count):
    with pytest.raises(DataError, match=f"^pictures has {count} images?, and metric '{metric}' needs {count + 1} at"):
        Evaluator(image_set(count), pixels(), ("is", metric) if metric == "fid" else (metric,))
    Evaluator(image_set(count + 1), pixels(), (metric,))


def test_one_image_is_too_few():
    with pytest.raises(DataError, match="1 images: a covariance needs at least 2"):
        Evaluator(image_set(), pixels())(pictures(1, 0))
    assert Evaluator(image_set(), pixels())(pictures(2, 0))["metrics"]["fid"]["n"] == 2


def test_wishes_that_cannot_be_met_are_refused():
    with pytest.raises(ConfigError, match="metric 'fd' is not known"):
        Evaluator(image_set(), pixels(), ("fd",))
    with pytest.raises(ConfigError, match="backend 'scipy' is not known"):
        Evaluator(image_set(), pixels(), backend="scipy")
    with pytest.raises(ConfigError, match="unknown resize mode 'bilinear': allowed are tf, clean"):
        Evaluator(image_set(), pixels(), mode="bilinear")
    with pytest.raises(ConfigError, match="is no classifier"):
        Evaluator(image_set(), pixels(), ("is",))(pictures(20, 0))
    with pytest.raises(ConfigError, match="is defined on CLIP features"):
        Evaluator(image_set(), pixels(), ("cmmd",))(pictures(20, 0))
    with pytest.raises(ConfigError, match="needs class labels"):
        Evaluator(image_set(), pixels(), ("per_class_fid",))(pictures(20, 0))
    with pytest.raises(DataError, match="prdc needs more than 5 images"):
        Evaluator(image_set(), pixels(), ("prdc",))(pictures(4, 0))


def test_memory_is_bounded_by_the_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffdistill.evaluation.reference.SAMPLE_ENTRIES", 16 * 40)
    images, reference = pictures(100, 1), image_set()
    limited = Evaluator(reference, pixels(), ("fid", "kid"))(images)["metrics"]
    assert (limited["fid"]["n"], limited["kid"]["n"]) == (100, 40)
    expected = frechet_distance(pixels()(reference.images), pixels()(images))
    assert limited["fid"]["value"] == pytest.approx(expected, rel=1e-10)


def test_inception_score_does_not_depend_on_the_order_of_classes():
    class Stripes(FeatureExtractor):
        id, sha256, dim, channels = "stripes", "0", 2, None

        def embed(self, images: Tensor) -> Tensor:
            first = (images[:, 0, 0, :1] > 127).double()
            return torch.cat([first, 1 - first], dim=1)

        def probabilities(self, features: Tensor) -> Tensor:
            return features

    images = torch.zeros(400, 1, 6, 6, dtype=torch.uint8)
    images[:200] = 255  # sorted by class
    result = Evaluator(image_set(), Stripes(), ("is",))(images)
    assert result["metrics"]["is"]["value"] == pytest.approx(2, abs=0.1)
