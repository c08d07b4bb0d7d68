"""The commands themselves on the device, which they find as they would find a GPU."""

import json

import pytest
from tiny_commands import NETWORK, TINY, png_folder


@pytest.fixture
def trained(there, tmp_path, ask):
    """A folder of images and the teacher that `train` made of it, in bf16 as its config says."""
    images, _ = png_folder(tmp_path / "images")
    quick = [*TINY, "sample_every=0", "evaluation.at_end=false"]
    places = [f"data.path={images}", f"output_dir={tmp_path / 'run'}"]
    assert ask("train", "fashion_mnist/teacher", *quick, *NETWORK, *places, "--quiet")[0] == 0
    about = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (about["gpu"], about["mixed_precision"]) == ("standin", "bf16")
    return images, tmp_path / "run" / "model"


def test_train_sample_evaluate_calibrate(trained, tmp_path, ask):
    images, model = trained
    few = ["--num-images", "6", "--steps", "2"]
    assert ask("sample", model, *few, "--out", tmp_path / "drawn")[0] == 0
    record = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert record["device"] == "standin"
    for device in ([], ["--device", "cpu"]):
        code, *said = ask(
            "evaluate", "--model", model, *few, "--reference", images, "--metrics", "fid", "--features", "pixels",
            "--json", tmp_path / f"{len(device)}.json", *device,
        )  # fmt: skip
        assert code == 0, said
    here, cpu = (json.loads((tmp_path / f"{n}.json").read_text())["metrics"]["fid"]["value"] for n in (0, 2))
    assert here == pytest.approx(cpu, rel=1e-3)  # a grey level in the last place
    code, *said = ask(
        "calibrate", model, "--data", images, "--out", tmp_path / "found.json", "--features", "pixels", "--num-images",
        "4", "--steps", "4",
    )  # fmt: skip
    assert code == 0, said
