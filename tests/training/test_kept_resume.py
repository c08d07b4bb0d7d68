"""Where images are kept is no part of a run: it goes on with another place, to the last bit, on the same images."""

import pytest
import torch
from kept_world import folder

import diffdistill
from diffdistill.data import load_images
from diffdistill.errors import ConfigError
from diffdistill.training.inputs import data_digests
from diffdistill.training.resume import FILES, check_same_run, settings_of

TINY = {
    "train_batch_size": 4, "sample_every": 0, "evaluation__at_end": False, "log_every": 1, "mixed_precision": "no",
    "network": {"kind": "uvit", "uvit": {"patch_size": 4, "hidden_size": 8, "depth": 2, "num_attention_heads": 1}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))


def trained(path, run, keep, steps, **more):
    settings = {
        **TINY,
        "data__path": str(path),
        "data__keep": keep,
        "output_dir": str(run),
        "data__workers": 1,
        **more,
    }
    found = diffdistill.train("fashion_mnist/teacher", max_train_steps=steps, **settings)
    return torch.cat([weight.detach().flatten() for weight in found.model.parameters()])


def test_a_run_goes_on_from_another_place_to_the_last_bit(tmp_path):
    path = folder(tmp_path / "set")
    whole = trained(path, tmp_path / "whole", "memory", 6)
    for steps, keep in ((2, "source"), (4, "disk"), (6, "source")):
        last = trained(path, tmp_path / "parts", keep, steps, resume_from_checkpoint="latest")
    assert torch.equal(last, whole)


def test_streamed_data_are_told_by_their_files_and_others_by_their_pixels(tmp_path):
    path = folder(tmp_path / "set")
    memory, disk, source = (
        data_digests(load_images(str(path), keep=keep, workers=0)) for keep in ("memory", "disk", "source")
    )
    assert memory == disk == {"data": memory["data"], FILES: source[FILES]}
    assert source.keys() == {FILES}
    path.rename(tmp_path / "elsewhere")
    assert data_digests(load_images(str(tmp_path / "elsewhere"), keep="source")) == source
    file = tmp_path / "elsewhere" / "class 1" / "01.png"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert data_digests(load_images(str(tmp_path / "elsewhere"), keep="source")) != source


@pytest.mark.parametrize(
    ("now", "goes_on"),
    [
        ({"data": "a", FILES: "f"}, True),
        ({FILES: "f"}, True),
        ({"data": "a", FILES: "g"}, True),  # the same pictures in another container
        ({FILES: "g"}, False),
        ({"data": "b", FILES: "f"}, False),
        ({"data": "b", FILES: "g"}, False),
    ],
)
def test_which_data_a_run_goes_on_with(tmp_path, now, goes_on):
    from diffdistill.config.schema import Train

    config = Train(output_dir=str(tmp_path), max_train_steps=9)
    state = {"step": 3, "settings": settings_of(config), "inputs": {"data": "a", FILES: "f"}}
    moved = config.model_copy(update={"data": config.data.model_copy(update={"keep": "source", "workers": 3})})
    if goes_on:
        check_same_run(tmp_path, state, moved, now)
        return
    with pytest.raises(ConfigError, match=r"the content of data.* is not what"):
        check_same_run(tmp_path, state, moved, now)
