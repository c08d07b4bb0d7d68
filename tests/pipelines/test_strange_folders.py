"""Folders that diffusers writes and we do not, and such as nobody writes: read as they are meant, or one sentence."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdistill.cli import main
from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError
from tests.worlds.tiny import tiny_teacher

PLAIN = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    tiny_teacher().save_pretrained(folder, role="teacher")
    return folder


@pytest.fixture
def foreign(ours, tmp_path):
    """As any diffusers folder: without digests."""
    shutil.copytree(ours, tmp_path / "model", ignore=shutil.ignore_patterns("diffdistill.json"))
    return tmp_path / "model"


def alter(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refusal(folder, capfd):
    """The one line that `sample` says of a folder, which it refuses with exit code 4 before it draws."""
    out = folder.parent / "out"
    assert main(["sample", str(folder), "--num-images", "1", "--steps", "1", "--out", str(out)]) == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert not out.exists()
    assert line.startswith("diffdistill: error: ")
    assert len(line) < 700 + 2 * len(str(folder))
    return line


def in_variants(folder, *names):
    tensors = {name: tensor.half() for name, tensor in load_file(folder / PLAIN).items()}
    (folder / PLAIN).unlink()
    for name in names:
        save_file(tensors, folder / "unet" / name, metadata={"format": "pt"})
    return tensors


def test_the_one_variant_of_the_weights_is_read_as_float32(foreign):
    tensors = in_variants(foreign, "diffusion_pytorch_model.fp16.safetensors")
    network = Denoiser.from_pretrained(foreign).network
    assert network.dtype == torch.float32
    assert all(torch.equal(network.state_dict()[name], tensor.float()) for name, tensor in tensors.items())


def test_shards_of_a_variant_are_read_and_may_name_no_pickle(foreign):
    name = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    tensors = in_variants(foreign, name)
    index = foreign / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, name)}))
    assert Denoiser.from_pretrained(foreign).network.dtype == torch.float32
    alter(index, weight_map=dict.fromkeys(tensors, "part.bin"))
    with pytest.raises(CheckpointError, match=r"part\.bin"):
        Denoiser.from_pretrained(foreign)


def test_of_several_variants_none_is_guessed(foreign, capfd):
    in_variants(foreign, *(f"diffusion_pytorch_model.{name}.safetensors" for name in ("fp16", "non_ema")))
    assert "variants fp16, non_ema" in refusal(foreign, capfd)


@pytest.mark.parametrize("size", [None, "x", [8], 0])
def test_a_network_without_a_size_is_refused(foreign, capfd, size):
    alter(foreign / "unet" / "config.json", sample_size=size)
    assert "sample_size" in refusal(foreign, capfd)


def test_a_text_network_without_a_size_is_refused(tmp_path):
    pytest.importorskip("transformers")
    from tests.worlds.tiny_text import stable_diffusion

    folder = stable_diffusion(tmp_path / "sd")
    alter(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(CheckpointError, match="sample_size"):
        Denoiser.from_pretrained(folder)


@pytest.mark.parametrize("entry", [None, [], ["diffusers"], "UNet2DModel", [None, None]])
def test_an_index_that_names_no_network_is_refused(foreign, capfd, entry):
    alter(foreign / "model_index.json", unet=entry)
    assert "names no unet" in refusal(foreign, capfd)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("levels", "x"), ("levels", [float("inf")]), ("levels", [10**400]), ("levels", [0.0]), ("levels", [True]),
        ("role", "x"), ("role", []), ("role", None), ("null_class", "1"), ("null_class", -1), ("path", 3),
        ("guidance_scale", "2"), ("call", []), ("call", {"height": "64"}), ("image_shape", [1, 8]),
        ("num_classes", 2.5), ("consistency", "x"),
    ],
)  # fmt: skip
def test_a_field_of_the_record_that_cannot_be_is_named(foreign, key, value):
    alter(foreign / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    (foreign / "diffdistill.json").write_text(json.dumps({"role": "student", "levels": [2.5], key: value}))
    with pytest.raises(CheckpointError, match=f"the {key} |consistency model"):
        Denoiser.from_pretrained(foreign)


def test_a_config_in_the_place_of_the_record_is_none(foreign):
    shutil.copy(foreign / "model_index.json", foreign / "diffdistill.json")
    with pytest.raises(CheckpointError, match="holds a config of diffusers and no record"):
        Denoiser.from_pretrained(foreign)


def test_a_role_that_is_unknown_is_no_teacher(foreign, capfd):
    (foreign / "diffdistill.json").write_text(json.dumps({"role": "pupil", "levels": [2.5]}))
    assert "teacher or student" in refusal(foreign, capfd)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX alone")
@pytest.mark.parametrize("name", ["unet/x.safetensors", "model_index.json", "diffdistill.json", PLAIN])
def test_a_pipe_is_not_waited_for(foreign, capfd, name):
    (foreign / name).unlink(missing_ok=True)
    os.mkfifo(foreign / name)
    assert "is a pipe or a device" in refusal(foreign, capfd)


def test_a_link_to_a_device_is_refused_and_one_to_a_file_is_read(foreign):
    (foreign / PLAIN).rename(foreign.parent / "weights")
    (foreign / PLAIN).symlink_to(foreign.parent / "weights")
    assert Denoiser.from_pretrained(foreign).image_shape == (1, 8, 8)
    (foreign / "unet" / "x.safetensors").symlink_to(os.devnull)
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        Denoiser.from_pretrained(foreign)


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b", "two\nlines"])
def test_a_name_that_no_file_has_is_lacking(foreign, capfd, name):
    (foreign / "diffdistill.json").write_text(json.dumps({"sha256": {name: "0"}}))
    assert "lacks" in refusal(foreign, capfd)
