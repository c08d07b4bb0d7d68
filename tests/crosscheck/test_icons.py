"""Colour icons in ten folders, a foreign data set: Debian's `oxygen-icon-theme`, 48x48, with transparency.

`pytest -m crosscheck tests/crosscheck/test_icons.py`. The package is unpacked into the test's own folder.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from downloads import debian_package
from inception_reference import convolutions
from keras_inception import packaged_model, save_features
from PIL import Image
from torch import Tensor

from diffdistill.cli import main
from diffdistill.data import ImageSet, load_images
from diffdistill.data.layout import by_number
from diffdistill.errors import DataError

pytestmark = pytest.mark.crosscheck
SIDE = 48
CLASSES = (
    "actions",
    "animations",
    "apps",
    "categories",
    "devices",
    "emblems",
    "emotes",
    "mimetypes",
    "places",
    "status",
)


def say(words: str) -> None:
    """A figure for the record, shown with `-s` or when the test fails."""
    print(f"\ncrosscheck: {words}", flush=True)


@pytest.fixture(scope="module")
def theme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = debian_package("oxygen-icon-theme", tmp_path_factory.mktemp("debian"))
    return root / "usr" / "share" / "icons" / "oxygen" / "base" / f"{SIDE}x{SIDE}"


@pytest.fixture(scope="module")
def icons(theme: Path) -> ImageSet:
    return load_images(str(theme), image_size=SIDE)


def write(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{k:04}.png")
    return folder


def measured(images: Path, reference: Path, features: str, *more: str) -> dict[str, Any]:
    """The Fréchet distance that the command writes, with its error and floor."""
    target = images.with_name(f"{images.name}-{Path(features).stem}.json")
    words = ["--images", str(images), "--reference", str(reference), "--metrics", "fid", "--json", str(target)]
    assert main(["evaluate", *words, "--features", features, *more]) == 0
    return json.loads(target.read_text())["metrics"]["fid"]


def test_classes_and_counts_are_the_folders(theme: Path, icons: ImageSet):
    files = [file for name in CLASSES for file in sorted((theme / name).rglob("*.png"))]
    counts = [len(list((theme / name).rglob("*.png"))) for name in CLASSES]
    assert icons.labels is not None
    assert icons.class_names == CLASSES
    assert icons.labels.bincount(minlength=10).tolist() == counts
    assert icons.images.shape == (len(files), 3, SIDE, SIDE)
    say(f"{len(files)} icons, " + ", ".join(f"{name} {n}" for name, n in zip(CLASSES, counts, strict=True)))


def test_transparency_lies_on_white(theme: Path, icons: ImageSet):
    """Against c a + 255 (1 - a) of Pillow's own colours and alpha, for every icon of the right size."""
    files = [file for name in CLASSES for file in sorted((theme / name).rglob("*.png"), key=by_number)]
    seen, clear = 0, 0
    for file, found in zip(files, icons.images, strict=True):
        with Image.open(file) as opened:
            if opened.size != (SIDE, SIDE):
                continue
            pixels = np.asarray(opened.convert("RGBA")).astype(np.float64)
        alpha = pixels[..., 3:] / 255
        expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
        # Rounded twice at most: by the laying on white, and by a palette's or a gray's own conversion.
        assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1, file
        assert (found.permute(1, 2, 0).numpy()[alpha[..., 0] == 0] == 255).all(), file
        seen, clear = seen + 1, clear + int((alpha == 0).any())
    say(f"{seen} icons checked, {clear} with places that are clear")
    assert clear > 1000


def test_icons_of_several_sizes_need_a_size(theme: Path):
    with pytest.raises(DataError, match=r"has images of several sizes: .* set the image size"):
        load_images(str(theme))


def barely_changed(images: Tensor) -> Tensor:
    """Every grey value one less, the same or one more, at random: nobody sees it, and it measures next to nothing."""
    change = torch.randint(-1, 2, images.shape, generator=torch.Generator().manual_seed(0))
    return (images + change).clamp(0, 255).to(torch.uint8)


def swap_measures(icons: Tensor, folder: Path, features: str) -> tuple[dict[str, Any], float]:
    """The distance of icons from themselves with red and blue swapped, and after a change that nobody sees."""
    reference = write(icons, folder / "icons")
    found = measured(write(icons.flip(1), folder / "swapped"), reference, features)
    least = measured(write(barely_changed(icons), folder / "barely"), reference, features)["value"]
    swapped = f"{found['value']:.3f} ± {found['standard_error']:.3f}"
    say(f"{len(icons)} icons, {Path(features).stem}: red and blue swapped {swapped}, a change nobody sees {least:.4f}")
    return found, least


@pytest.mark.parametrize(("features", "colour"), [("pixels", True), ("emoji", True), ("fashion_mnist", False)])
def test_swapped_colours_are_seen_by_features_of_colour_alone(
    icons: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: str, colour: bool
):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    found, least = swap_measures(icons.images, tmp_path, features)
    assert (found["value"] > 10 * found["standard_error"]) == colour
    assert not colour or found["value"] > 10 * least


@pytest.mark.slow
def test_swapped_colours_are_seen_by_published_inception(
    icons: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """64 icons are few for 2,048 features, where the error is too large: the unseen change is the scale."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    features = save_features(packaged_model(tmp_path), convolutions(), tmp_path / "nsfwjs.safetensors")
    found, least = swap_measures(icons.images[:: len(icons) // 64][:64], tmp_path, str(features))
    said = capsys.readouterr().out
    print(said)  # the figures, for the record
    assert "FID (inception_v3_keras:nsfwjs)" in said
    assert found["value"] > 10 * least


@pytest.mark.slow
def test_a_teacher_trains_on_them_and_is_measured(
    theme: Path, icons: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    run, reference = tmp_path / "run", write(icons.images, tmp_path / "icons")
    words = [f"data.path={theme}", "data.image_size=32", f"output_dir={run}", "max_train_steps=3", "num_threads=1"]
    words += ["train_batch_size=16", "mixed_precision=no", "evaluation.at_end=false", "sample_every=0", "log_every=1"]
    assert main(["train", "fashion_mnist/teacher", *words]) == 0
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    said = json.loads((run / "model" / "diffdistill.json").read_text())
    assert (said["num_classes"], said["image_shape"]) == (10, [3, 32, 32])
    say(f"losses of three steps: {[line['loss'] for line in losses if 'loss' in line]}")
    target = tmp_path / "teacher.json"
    words = [
        "--model",
        f"{run / 'model'}@2",
        "--reference",
        str(reference),
        "--num-images",
        "40",
        "--json",
        str(target),
    ]
    assert main(["evaluate", *words, "--features", "emoji", "--metrics", "fid"]) == 0
    found = json.loads(target.read_text())
    value, floor = found["metrics"]["fid"]["value"], found["metrics"]["fid"]["floor"]["value"]
    say(f"after three steps, emoji: {value:.1f}, real against real {floor:.1f}")
    assert value > 2 * floor  # noise, and said to be noise
    assert torch.isfinite(torch.tensor([line["loss"] for line in losses if "loss" in line])).all()
