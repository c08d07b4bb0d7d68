"""Inception v3: made-up weights against torch-fidelity's and pytorch-fid's networks, published ones against Keras'.

`pytest -m crosscheck tests/crosscheck/test_inception_weights.py`. What is downloaded lies in the test's own folder.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from downloads import npm_modules, python_wheel
from inception_reference import State, convolutions, features, made_up_state
from keras_graph import KerasModel, run
from keras_inception import PACKAGE, VERSION, packaged_model, save_features
from reference_tools import need_inception
from torch import Tensor

from diffdistill.cli import main
from diffdistill.data.pixels import decode
from diffdistill.evaluation import load_features
from diffdistill.evaluation.extractors.inception_weights import InceptionWeights

pytestmark = pytest.mark.crosscheck


def say(words: str) -> None:
    """A figure for the record, shown with `-s` or when the test fails."""
    print(f"\ncrosscheck: {words}", flush=True)


def pictures(n: int, size: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def small_batches(file: Path) -> InceptionWeights:
    """The extractor of a file, one picture at a time: the test has a few, and a CPU's batch is filled up."""
    extractor: Any = load_features(str(file))
    extractor.batch_size = 1
    return extractor


# ---- the graph of 2015


@pytest.fixture(scope="module")
def state() -> State:
    return made_up_state()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    file = tmp_path_factory.mktemp("weights") / "made_up.pth"
    torch.save(state, file, _use_new_zipfile_serialization=False)  # noqa: TID251
    return file


@pytest.fixture(scope="module")
def fidelity(weights_file: Path) -> Any:
    """torch-fidelity's extractor, which reads the same file by itself; in float64, so that it is the exact one."""
    module = need_inception("torch_fidelity.feature_extractor_inceptionv3")
    options = {"feature_extractor_weights_path": str(weights_file), "feature_extractor_internal_dtype": "float64"}
    return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], **options)


def test_features_and_classes_are_torch_fidelitys(weights_file: Path, fidelity: Any):
    ours, images = small_batches(weights_file), pictures(2, 64)
    theirs, logits = fidelity(images)
    found = ours(images)
    probabilities = ours.probabilities(found)
    assert probabilities is not None
    difference = relative(found, theirs)
    say(f"torch-fidelity, 2,048 features: {difference:.1e} of the largest")
    assert difference < 1e-5
    assert (probabilities - logits.double().softmax(1)).abs().max() < 1e-5


def test_the_tests_reference_is_torch_fidelitys(state: State, fidelity: Any):
    images = pictures(1, 299)
    (theirs, _) = fidelity(images)
    ours = features((images.double() - 128) / 128, state, largest=True)
    assert relative(ours, theirs) < 1e-6  # theirs is rounded to float32 at the end


def test_features_are_pytorch_fids(weights_file: Path, state: State, monkeypatch: pytest.MonkeyPatch):
    module = need_inception("pytorch_fid.inception")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: dict(state))
    network = module.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    ours, images = small_batches(weights_file), pictures(2, 299)
    with torch.no_grad():
        (same_pixels,) = network((images.float() - 128) / 128)
        (its_pixels,) = module.InceptionV3([3]).eval()(images.float() / 255)
    difference = relative(ours(images), same_pixels.flatten(1))
    moved = relative(its_pixels.flatten(1), same_pixels.flatten(1))
    say(
        f"pytorch-fid, 2,048 features: {difference:.1e} of the largest; its own range of pixels moves them {moved:.1e}"
    )
    assert difference < 1e-5


def test_the_distance_of_pth_weights_is_torch_fidelitys(
    weights_file: Path,
    tmp_path: Path,
    fidelity: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    module = need_inception("torch_fidelity.metric_fid")
    real, fake = pictures(6, 32), (pictures(6, 32).float() * 0.6).to(torch.uint8)
    for name, images in (("real", real), ("fake", fake)):
        write_pictures(images, tmp_path / name)
    words = ["--images", str(tmp_path / "fake"), "--reference", str(tmp_path / "real"), "--metrics", "fid"]
    target = tmp_path / "result.json"
    assert main(["evaluate", *words, "--features", str(weights_file), "--json", str(target)]) == 0
    assert "FID (inception_v3_2015:made_up)" in capsys.readouterr().out
    found = json.loads(target.read_text())["metrics"]["fid"]["value"]
    statistics = [module.fid_features_to_statistics(fidelity(images)[0]) for images in (fake, real)]
    expected = module.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    say(f"torch-fidelity, Fréchet distance of 6 and 6 pictures: {found:.6f} and {expected:.6f}")
    assert found == pytest.approx(expected, rel=1e-6)


def write_pictures(images: Tensor, folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for k, picture in enumerate(images):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{k:03}.png")


# ---- published weights: Keras' Inception v3 of npm's nsfwjs, trained to tell five kinds of pictures

CLASSES = ("Drawing", "Hentai", "Neutral", "Porn", "Sexy")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> KerasModel:
    return packaged_model(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, keras: KerasModel) -> Path:
    """The file a user gives as --features."""
    return save_features(keras, convolutions(), tmp_path_factory.mktemp("published") / "nsfwjs.safetensors")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that a package ships."""
    return (
        python_wheel(sys.executable, "scikit-image", "0.26.0", tmp_path_factory.mktemp("wheel")) / "skimage" / "data"
    )


def photograph(folder: Path, name: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(decode(folder / name, name).transpose(2, 0, 1)))[None]


def test_the_packages_layers_give_our_features(keras: KerasModel, published: Path, photographs: Path):
    ours = small_batches(published)
    assert (ours.id, ours.graph.name, ours.dim) == ("inception_v3_keras:nsfwjs", "keras", 2048)
    for name, images in (("noise", pictures(1, 299)), ("chelsea.png", photograph(photographs, "chelsea.png"))):
        pixels = ours.prepare(images)
        expected = run(keras, pixels.permute(0, 2, 3, 1).double() / 255, "flatten_1")
        difference = (ours(images) - expected).abs().max()
        say(f"Keras' graph, {name}: {difference:.1e} where features reach {expected.max():.2f}")
        assert difference < 1e-5
        assert expected.max() > 0.5


@pytest.mark.slow
def test_the_packages_own_runtime_gives_our_features(keras: KerasModel, published: Path, tmp_path: Path):
    """nsfwjs on TensorFlow.js, from its own loading of its own file."""
    modules = ("@tensorflow/tfjs@4.22.0", "@tensorflow/tfjs-backend-wasm@4.22.0", f"{PACKAGE}@{VERSION}")
    folder, images = npm_modules(tmp_path, *modules), pictures(1, 299)
    (folder / "pixels").write_bytes(images[0].permute(1, 2, 0).contiguous().numpy().tobytes())
    script = shutil.copy(Path(__file__).with_name("nsfwjs_features.js"), folder)
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    subprocess.run(["node", str(script), "pixels", "out.json"], cwd=folder, check=True, timeout=3600)
    theirs = json.loads((folder / "out.json").read_text())
    found = small_batches(published)(images)
    difference = (found[0] - torch.tensor(theirs["features"]).double()).abs().max()
    say(f"nsfwjs on TensorFlow.js, 2,048 features: {difference:.1e} where they reach {max(theirs['features']):.2f}")
    assert difference < 1e-5
    assert torch.allclose(classify(keras, found)[0], torch.tensor(theirs["classes"]).double(), atol=1e-5)


def classify(model: KerasModel, pooled: Tensor) -> Tensor:
    """The package's own last layers on features: probabilities of CLASSES."""
    x = pooled
    for layer in model.layers:
        if layer["class_name"] == "Dense":
            x = run(KerasModel([layer | {"inbound_nodes": []}], model.weights), x, layer["name"])
    return x


def test_photographs_are_neutral_to_the_packages_classifier(keras: KerasModel, published: Path, photographs: Path):
    ours = small_batches(published)
    for name in PHOTOGRAPHS:
        found = classify(keras, ours(photograph(photographs, name)))[0]
        say(f"{name}: " + ", ".join(f"{word} {p:.3f}" for word, p in zip(CLASSES, found.tolist(), strict=True)))
        assert found[CLASSES.index("Neutral")] > 0.5


@pytest.mark.slow
def test_the_command_measures_with_published_weights(
    published: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Crops of photographs: other crops of the same ones are near; with red and blue swapped they are not."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    whole = [photograph(photographs, name)[0] for name in PHOTOGRAPHS]
    crops = torch.stack([x[:, i : i + 160, i : i + 160] for x in whole for i in range(0, 120, 15)])
    for name, images in (("real", crops[::2]), ("other", crops[1::2]), ("swapped", crops[1::2].flip(1))):
        write_pictures(images, tmp_path / name)
    values = {}
    for name in ("other", "swapped"):
        target = tmp_path / f"{name}.json"
        words = ["--images", str(tmp_path / name), "--reference", str(tmp_path / "real"), "--metrics", "fid"]
        assert main(["evaluate", *words, "--features", str(published), "--json", str(target)]) == 0
        assert "FID (inception_v3_keras:nsfwjs)" in capsys.readouterr().out
        values[name] = json.loads(target.read_text())["metrics"]["fid"]["value"]
    say(f"Fréchet distance of crops: {values}")
    assert values["swapped"] > 2 * values["other"]
