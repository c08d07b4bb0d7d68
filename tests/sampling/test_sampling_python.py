"""`sample` from Python: the images and the record of the command line."""

import json

import pytest
import torch

import diffdistill
from diffdistill.errors import ConfigError
from diffdistill.sampling.generate import generate
from tests.worlds.tiny import tiny_teacher


def test_the_images_are_those_of_generate_with_their_settings():
    found = diffdistill.sample(tiny_teacher(), num_images=5, seed=4, steps=2, batch_size=2, class_labels=[2, 0])
    theirs = torch.cat([b for b, _ in generate(tiny_teacher(), num_images=5, seed=4, steps=2, class_labels=[2, 0])])
    assert (found.images.int() - theirs.int()).abs().max() <= 1
    assert found.images.dtype == torch.uint8
    assert [entry["label"] for entry in found.settings["images"]] == [2, 0, 2, 0, 2]
    assert found.settings["model_sha256"] is None  # it came from no folder


def test_the_folder_holds_the_same_record(tmp_path):
    tiny_teacher().save_pretrained(tmp_path / "teacher", role="teacher")
    found = diffdistill.sample(tmp_path / "teacher", num_images=3, steps=1, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record == json.loads(json.dumps(found.settings))
    assert record["model"] == str(tmp_path / "teacher")
    assert {file.name for file in (tmp_path / "out").glob("0*.png")} == {e["file"] for e in record["images"]}


def test_images_that_are_only_written_are_not_kept(tmp_path):
    found = diffdistill.sample(tiny_teacher(), num_images=2, steps=1, out=tmp_path / "out", keep=False)
    assert found.images is None
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2


def test_a_wrong_request_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(ConfigError, match="class label 7 is out of range"):
        diffdistill.sample(tiny_teacher(), num_images=1, out=tmp_path / "out", class_labels=[7])
    with pytest.raises(ConfigError, match="0 images in batches of 64"):
        diffdistill.sample(tiny_teacher(), out=tmp_path / "out")
    with pytest.raises(TypeError, match="stepz"):
        diffdistill.sample(tiny_teacher(), num_images=1, stepz=3)
    assert list(tmp_path.iterdir()) == []


def test_loading_needs_no_import_but_that_of_the_denoiser(python):
    words = (
        "from diffdistill.denoiser import Denoiser; print(Denoiser.from_pretrained('builtin:fashion_mnist_teacher')"
    )
    assert python("-c", f"{words}.image_shape)").out.strip() == "(1, 28, 28)"
