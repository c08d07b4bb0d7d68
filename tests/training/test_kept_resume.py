"""Where images are kept is no part of a run: it goes on with another place, to the last bit, on the same images."""

import os
import shutil

import pytest
import torch
from kept_world import folder
from PIL import Image

import diffdistill
from diffdistill.data import identity, load_images, wanted
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


def digests(path):
    return data_digests(load_images(str(path), keep="source", workers=0))


def turned(file, places=(0.3, 0.7)):
    """Change bytes of a file between those that samples would be of, keeping its size and the time of its content."""
    before, content = file.stat(), bytearray(file.read_bytes())
    for place in places:
        content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("whole", [True, False])
def test_a_change_anywhere_in_a_streamed_file_is_another_set(tmp_path, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(identity, "WHOLE", 0)
    (tmp_path / "set").mkdir()
    files = [tmp_path / "set" / f"{i}.bmp" for i in range(2)]
    for file in files:
        Image.new("RGB", (160, 160)).save(file)
    first = digests(tmp_path / "set")
    assert digests(tmp_path / "set") == first
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert (digests(tmp_path / "copy") == first) is whole  # a large set is known by the state of its files too
    turned(files[1])
    assert digests(tmp_path / "set") != first


@pytest.mark.parametrize("column", ["label", "text"])
@pytest.mark.parametrize("keep", ["source", "disk"])
def test_labels_and_texts_are_part_of_what_a_set_is_known_by(tmp_path, monkeypatch, column, keep):
    """Those beside many images too, where not every file is looked into."""
    monkeypatch.setattr(identity, "content_of", lambda files, base: "the same files")
    monkeypatch.setattr(wanted, "content_of", identity.content_of)
    known = []
    for values in ("01010", "10101"):
        for i in range(len(values)):
            Image.new("L", (4, 4), 9).save(tmp_path / f"{i}.bmp")
        rows = [f"{i}.bmp,{value}" for i, value in enumerate(values)]
        (tmp_path / "metadata.csv").write_text("\n".join([f"file_name,{column}", *rows]) + "\n")
        known.append(data_digests(load_images(str(tmp_path), keep=keep, workers=0))[FILES])
    assert known[0] != known[1]


def test_a_run_whose_labels_or_pixels_changed_does_not_go_on(tmp_path):
    path = folder(tmp_path / "set")
    trained(path, tmp_path / "run", "source", 1)
    shutil.move(path, tmp_path / "moved")  # is no change
    trained(tmp_path / "moved", tmp_path / "run", "source", 2, resume_from_checkpoint="latest")
    one, other = tmp_path / "moved" / "class 0" / "00.png", tmp_path / "moved" / "class 1" / "01.png"
    content = one.read_bytes(), other.read_bytes()
    for file, now in zip((one, other), reversed(content), strict=True):
        file.write_bytes(now)
    with pytest.raises(ConfigError, match=r"the content of data files is not what"):
        trained(tmp_path / "moved", tmp_path / "run", "source", 3, resume_from_checkpoint="latest")
    changed = {"resume_from_checkpoint": "latest", "allow_changed_inputs": True}
    trained(tmp_path / "moved", tmp_path / "run", "source", 3, **changed)


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
