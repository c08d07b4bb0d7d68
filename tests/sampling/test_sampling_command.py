"""`diffdistill sample`: what lies in the folder, and that nothing lies there when it fails."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError, DataError, DiskError
from diffdistill.process import EDM
from diffdistill.sampling import command
from diffdistill.sampling.generate import generate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=3,
    )
    folder = tmp_path_factory.mktemp("models") / "teacher"
    Denoiser(network, EDM(), null_class=2).save_pretrained(folder, role="teacher")
    return str(folder)


def arguments(model, out, **changed):
    given = {
        "model": model,
        "num_images": 5,
        "out": str(out),
        "steps": 2,
        "seed": 3,
        "batch_size": 2,
        "class_labels": None,
        "prompt": None,
        "prompts": None,
        "negative_prompt": None,
        "guidance_scale": None,
        "sampler": None,
        "epsilon_scaling": None,
        "time_shift_sampler": None,
        "calibration": None,
        "signal_leak": None,
        "attention": None,
        "format": "png",
        "quality": None,
        "size": None,
        "dtype": None,
        "device": "cpu",
    }
    return Namespace(**given | changed)


def pixels(file):
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def test_folder_holds_the_images_the_grid_and_the_record(model, tmp_path):
    assert command.run(arguments(model, tmp_path / "out", guidance_scale=1.5)) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == [f"{i:05d}.png" for i in range(5)] + ["grid.png", "samples.json"]
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["sampler"] == "heun"
    assert record["evaluations"] == 3
    assert record["levels"] == pytest.approx([80.0, 0.002, 0.0])
    assert [image["label"] for image in record["images"]] == [0, 1, 0, 1, 0]
    assert len(record["model_sha256"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_each_image_can_be_made_again_alone_from_the_record(model, tmp_path):
    command.run(arguments(model, tmp_path / "out", batch_size=64))
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    image = record["images"][3]
    again, _ = next(
        generate(
            record["model"],
            num_images=1,
            first=image["index"],
            seed=image["seed"],
            steps=record["steps"],
            sampler=record["sampler"],
            class_labels=record["class_labels"],
            guidance_scale=record["guidance_scale"],
            device="cpu",
        )
    )
    assert torch.equal(again[0], pixels(tmp_path / "out" / image["file"]))


def test_a_folder_that_holds_files_is_refused_and_kept(model, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"already exists and is not an empty folder; name a new one"):
        command.run(arguments(model, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError):
        command.run(arguments(model, tmp_path / "mine.txt"))
    (tmp_path / "empty").mkdir()
    assert command.run(arguments(model, tmp_path / "empty", num_images=1)) == 0


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"prompt": "a cat"}, ConfigError, "prompts need a text-to-image model, and this model has classes 0 to 1"),
        ({"negative_prompt": "a cat"}, ConfigError, "prompts need a text-to-image model"),
        ({"prompts": "absent.txt"}, DataError, "'absent.txt' cannot be read"),
        (
            {"epsilon_scaling": "auto"},
            CheckpointError,
            "there is no calibration .*; make one with 'diffdistill calibrate",
        ),
        ({"time_shift_sampler": "auto"}, CheckpointError, "there is no calibration"),
        ({"epsilon_scaling": "-1"}, ConfigError, "divides the first of 2 steps by -1; lambda must be above 0"),
        ({"time_shift_sampler": "2000,300"}, ConfigError, "window of 2000 time steps does not fit the schedule"),
        ({"time_shift_sampler": "1.5,300"}, ConfigError, "window and cutoff are whole time steps"),
        ({"class_labels": (7,)}, ConfigError, "class label 7 is out of range; this model has classes 0 to 1"),
        ({"model": "/nowhere/at/all"}, CheckpointError, "is not a diffusers folder"),
        ({"device": "cuda:99"}, ConfigError, "device 'cuda:99' is not on this machine"),
    ],
)
def test_wrong_requests_leave_nothing_behind(model, tmp_path, changed, error, sentence):
    with pytest.raises(error, match=sentence):
        command.run(arguments(**{"model": model, "out": tmp_path / "out", **changed}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(model, tmp_path, monkeypatch):
    def full(*_args, **_settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskError, match="could not write"):
        command.run(arguments(model, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
