"""Feature extractors: what they compute, what they refuse, and where they say weights belong."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.assets import asset
from diffdistill.data import ImageSet, load_images
from diffdistill.errors import CheckpointError, ConfigError, DataError
from diffdistill.evaluation import Evaluator, load_features
from diffdistill.evaluation.extractors import inception
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.features import choose_features
from diffdistill.evaluation.resize import resize, with_channels
from diffdistill.files import sha256


def pictures(n: int, channels: int = 3, height: int = 28, width: int = 28, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))


def test_bundled_features_classify_as_well_as_their_log_says():
    extractor = load_features("fashion_mnist")
    test = load_images("builtin:fashion_mnist", split="test", limit=2000)
    assert test.labels is not None
    probabilities = extractor.probabilities(extractor(test.images))
    assert probabilities is not None
    config = json.loads((asset("fashion_mnist_features") / "config.json").read_text())
    assert config["test_accuracy"] >= 0.91
    assert float((probabilities.argmax(1) == test.labels).double().mean()) == pytest.approx(
        config["test_accuracy"], abs=0.02
    )


def test_features_are_float64_of_the_promised_width_and_carry_a_digest():
    extractor = load_features("fashion_mnist")
    features = extractor(pictures(5, 1))
    assert (features.dtype, tuple(features.shape)) == (torch.float64, (5, extractor.dim))
    assert extractor.sha256 == sha256(asset("fashion_mnist_features") / "model.safetensors")
    assert extractor(pictures(0, 1)).shape == (0, extractor.dim)


def test_features_of_an_image_depend_on_the_image_alone():
    extractor, images = load_features("fashion_mnist"), pictures(300, 1)
    whole = extractor(images)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extractor(images[order]), whole[order])
    assert torch.equal(torch.cat([extractor(part) for part in images.split(70)]), whole)


def test_gray_and_the_same_picture_as_rgb_have_the_same_features():
    extractor, images = load_features("fashion_mnist"), pictures(4, 1)
    assert torch.allclose(extractor(images), extractor(images.expand(-1, 3, -1, -1)), atol=1e-4)


def test_damaged_weights_are_refused(tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((asset("fashion_mnist_features") / name).read_bytes())
    load_features(str(tmp_path))
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        load_features(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not a folder of features"):
        load_features(str(tmp_path))


def test_tf_resize_is_the_one_inside_the_inception_graph():
    # The graph samples with an affine grid that undoes half-pixel centres; Stein's and EDM's figures come from it.
    images = pictures(3, 3, 20, 32).float()
    height, width = 35, 50
    theta = torch.tensor([[1.0, 0.0, 1 / 32 - 1 / width], [0.0, 1.0, 1 / 20 - 1 / height]])
    grid = F.affine_grid(theta[None].expand(3, -1, -1), [3, 3, height, width], align_corners=False)
    expected = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert (resize(images, (height, width), "tf") - expected).abs().max() < 1e-2


def test_clean_resize_is_pillows_on_floats():
    images = pictures(2, 3, 40, 30).float()
    images[..., 15:] = 255  # an edge, beside which bicubic goes beyond 255
    expected = np.array(
        [
            [np.asarray(Image.fromarray(plane.numpy()).resize((9, 12), Image.Resampling.BICUBIC)) for plane in image]
            for image in images
        ]
    )
    assert expected.max() > 256
    assert torch.equal(resize(images, (12, 9), "clean"), torch.from_numpy(expected).clamp(0, 255))


def test_colour_becomes_the_gray_that_pillow_makes_of_it():
    images = pictures(2, 3)
    gray = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images]
    assert (with_channels(images.float(), 1)[:, 0] - torch.from_numpy(np.array(gray))).abs().max() <= 0.51
    assert torch.equal(with_channels(images[:, :1].float(), 3), images[:, :1].float().repeat(1, 3, 1, 1))


def test_the_resize_in_use_is_named():
    extractor = load_features("fashion_mnist", mode="tf")
    assert (extractor.resize_used(28, 28), extractor.resize_used(32, 32)) == ("none", "tf")
    assert load_features("fashion_mnist").resize_used(32, 32) == "clean"
    with pytest.raises(ConfigError, match="unknown resize mode 'bicubic'"):
        load_features("fashion_mnist", mode="bicubic")


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), pictures(2)[0], pictures(2, 4), "pictures"],
    ids=["float", "3-d", "4-channel", "text"],
)
def test_what_are_no_images_is_refused(images: Tensor):
    with pytest.raises(DataError, match="images to evaluate must be uint8"):
        load_features("pixels")(images)


def test_features_that_are_not_finite_are_refused():
    class Broken(FeatureExtractor):
        id, sha256, dim, channels = "broken", "0", 2, None

        def embed(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), float("inf"))

    with pytest.raises(CheckpointError, match="features 'broken' are NaN or infinite for 3 images"):
        Broken()(pictures(3))


def test_unknown_names_get_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'inception'"):
        load_features("incepton")


class Halves(nn.Module):
    """Means of the left and right half of an uint8 picture."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().mean((1, 2))
        half = x.shape[1] // 2
        return torch.stack([x[:, :half].mean(1), x[:, half:].mean(1)], 1)


def test_a_torchscript_network_of_the_users(tmp_path: Path, consent: None):
    file = tmp_path / "halves.pt"
    torch.jit.save(torch.jit.script(Halves()), str(file))
    extractor = load_features(str(file))
    images = pictures(4)
    assert (extractor.dim, extractor.sha256) == (2, sha256(file))
    assert torch.allclose(extractor(images)[:, 0], images[..., :14].double().mean((1, 2, 3)), atol=1e-3)


class Writer(nn.Module):
    """TorchScript is a program: this one writes a file when it is called, another when it is only opened."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, images: Tensor) -> Tensor:
        torch.save(images, self.place)  # noqa: TID251
        return images.float().mean((2, 3))


def test_torchscript_of_a_stranger_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, marker = tmp_path / "features.pt", tmp_path / "written"
    torch.jit.save(torch.jit.script(Writer(str(marker))), str(file))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ConfigError, match="--allow-code"):
        load_features(str(file))
    assert not marker.exists()


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3))


class Whole(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :4]


class Few(nn.Module):
    """One row too few wherever it can."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().mean((2, 3))
        return x if images.size(2) == 64 else x[:-1]


@pytest.mark.parametrize(("network", "sentence"), [(Flat, "must give"), (Whole, "no tensor of floats")])
def test_torchscript_of_another_shape_is_a_broken_model(tmp_path: Path, consent: None, network, sentence):
    torch.jit.save(torch.jit.script(network()), str(tmp_path / "net.pt"))
    with pytest.raises(CheckpointError, match=sentence):
        load_features(str(tmp_path / "net.pt"))


def test_an_extractor_measures_each_image(tmp_path: Path, consent: None):
    torch.jit.save(torch.jit.script(Few()), str(tmp_path / "net.pt"))
    extractor = load_features(str(tmp_path / "net.pt"))
    with pytest.raises(CheckpointError, match="does not measure each image"):
        extractor(pictures(extractor.batch_size, 3))


def test_pickles_are_refused_and_not_run(tmp_path: Path):
    marker = tmp_path / "run"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"model": Bomb()}, tmp_path / "zip.pt")  # noqa: TID251
    torch.save({"model": Bomb()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)  # noqa: TID251
    (tmp_path / "noise.pt").write_bytes(b"\x80\x04K\x01.")
    for name in ("zip.pt", "old.pt"):
        with pytest.raises(CheckpointError, match="nothing of the file was run"):
            load_features(str(tmp_path / name))
    with pytest.raises(CheckpointError, match="and not tensors by name"):
        load_features(str(tmp_path / "noise.pt"))
    assert not marker.exists()


def test_missing_inception_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(CheckpointError) as error:
        load_features("inception")
    assert str(tmp_path / "cache" / "features" / inception.FILE) in str(error.value)
    assert inception.URL in str(error.value)
    with pytest.raises(CheckpointError, match="there is no file"):
        load_features("inception:/absent/inception.pt")


def test_a_damaged_download_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    kept = tmp_path / "cache" / "features" / inception.FILE
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half of it")
    monkeypatch.setattr(inception, "_download", asked.append)
    assert inception.find_weights(None) == kept
    assert asked == [kept]
    monkeypatch.setattr(inception, "SHA256", sha256(kept))
    assert inception.find_weights(None) == kept
    assert asked == [kept]


class Stand(nn.Module):
    """The parts of the 2015 graph that are used: `layers`, which ends in 2,048 features, and `output`."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 2048, 13, stride=13), pool)
        self.output = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layers(x).flatten(1))


def test_inception_checks_its_digest_and_chooses_its_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "inception.pt"
    net = Stand().eval()
    torch.jit.save(torch.jit.script(net), str(file))
    with pytest.raises(CheckpointError, match="is not Inception of 2015"):
        load_features(f"inception:{file}")
    monkeypatch.setattr(inception, "SHA256", sha256(file))
    extractor = load_features(f"inception:{file}")
    assert [extractor.resize_used(size, size) for size in (32, 298, 299, 512)] == ["tf", "tf", "none", "clean"]
    images = pictures(2, 3, 299, 299)
    with torch.no_grad():
        expected = net.layers((images.float() - 128) / 128).flatten(1)
        logits = F.linear(expected, net.output.weight)
    features = extractor(images)
    assert torch.allclose(features.float(), expected, atol=1e-5)
    assert torch.allclose(extractor.probabilities(features), logits.double().softmax(1), atol=1e-6)


def test_features_trained_on_ones_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Two classes, dark and bright, which a small classifier tells apart; colour, 32 pixels, no split `test`.
    for label, low, high in ((0, 0, 120), (1, 136, 256)):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        generator = np.random.default_rng(label)
        for k in range(160):
            pixels = generator.integers(low, high, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / str(label) / f"{k:03}.png")
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "fashion_mnist" / "train_features.py"))
    words = [str(tmp_path / "data"), "--out", str(tmp_path / "two_features"), "--epochs", "20", "--convs", "2"]
    monkeypatch.setattr(sys, "argv", ["train_features.py", *words, "--channels", "8", "8", "8", "--dim", "16"])
    script["main"]()
    extractor, data = load_features(str(tmp_path / "two_features")), load_images(str(tmp_path / "data"))
    features = extractor(data.images)
    assert (extractor.id, extractor.channels, extractor.size, extractor.dim) == ("two", 3, (32, 32), 16)
    tenth = torch.arange(len(features)) % 10 == 9
    assert features[~tenth].var(0).mean() == pytest.approx(1, rel=1e-3)
    assert data.labels is not None
    probabilities = extractor.probabilities(features)
    assert probabilities is not None
    assert torch.equal(probabilities.argmax(1)[tenth], data.labels[tenth])


@pytest.mark.parametrize(
    ("channels", "size", "name"), [(1, 28, "fashion_mnist"), (1, 33, "inception"), (3, 28, "inception")]
)
def test_without_a_name_the_reference_decides(
    channels: int, size: int, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A gray classifier of 28x28 pixels never measures other images because nothing was said."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path))
    images = torch.zeros(4, channels, size, size, dtype=torch.uint8)
    reference = ImageSet(images, None, None, None, "x", "0")

    def absent(given: str | None) -> Path:
        raise CheckpointError("no Inception weights")

    monkeypatch.setattr(inception, "find_weights", absent)
    if name == "fashion_mnist":
        assert choose_features(None, reference).id == name
        assert Evaluator(reference).warnings == []
        return
    for asked in (choose_features, lambda given, of: Evaluator(of, given)):
        with pytest.raises(CheckpointError, match=f"pictures of {size}x{size}, measured by Inception"):
            asked(None, reference)
