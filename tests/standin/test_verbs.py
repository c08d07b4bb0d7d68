"""The commands themselves on the device, which they find as they would find a GPU."""

import json

import pytest
from tiny_commands import NETWORK, TINY, png_folder


@pytest.fixture
def trained(there, tmp_path, ask):
    """A folder of images and the teacher that `train` made of it, in bf16 as its config says."""
    images, _ = png_folder(tmp_path / "images")
    quick = [*TINY, "evaluation.at_end=false"]
    places = [f"data.path={images}", f"output_dir={tmp_path / 'run'}"]
    assert ask("train", "fashion_mnist/teacher", *quick, *NETWORK, *places, "--quiet")[0] == 0
    about = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (about["gpu"], about["mixed_precision"]) == ("standin", "bf16")
    return images, tmp_path / "run" / "model"


def test_train_sample_evaluate_calibrate(trained, tmp_path, ask):
    images, model = trained
    few = ["--num-images", "6", "--steps", "2"]
    measured = ["--features", "pixels"]
    assert ask("sample", str(model), *few, "--out", str(tmp_path / "drawn"))[0] == 0
    record = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert record["device"] == "standin"
    for device in ([], ["--device", "cpu"]):
        answer = ["--metrics", "fid", "--json", str(tmp_path / f"{len(device)}.json"), *device]
        words = ["--model", str(model), *few, "--reference", str(images), *measured, *answer]
        assert ask("evaluate", *words)[0] == 0
    here, cpu = (json.loads((tmp_path / f"{n}.json").read_text())["metrics"]["fid"]["value"] for n in (0, 2))
    assert here == pytest.approx(cpu, rel=1e-3)  # a grey level in the last place
    words = ["--data", str(images), "--out", str(tmp_path / "found.json"), "--num-images", "4", "--steps", "4"]
    assert ask("calibrate", str(model), *words, *measured)[0] == 0
