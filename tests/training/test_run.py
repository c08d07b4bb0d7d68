"""A run as the verbs make it: its folder, what it publishes, what it refuses."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffdistill.config import load_config
from diffdistill.config.schema import Train
from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import numbers_of
from diffdistill.training import run as module
from diffdistill.training.inputs import model_digest, pairs_digest
from diffdistill.training.lock import locked
from diffdistill.training.publish import publish


def images(file, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(file, images=pixels, labels=np.arange(24) % 3)


def train(folder, steps=2, *more):
    os.chdir(folder)
    words = [
        "data.path=data.npz", f"output_dir={folder / 'run'}", "train_batch_size=4", "log_every=1",
        "sample_every=0", "evaluation.features=pixels", "evaluation.num_images=12", "evaluation.at_end=false",
        "network.block_out_channels=[8,16]", "network.norm_num_groups=4", "network.attention_head_dim=8",
        f"max_train_steps={steps}", *more,
    ]  # fmt: skip
    return module.train(load_config(Train, "fashion_mnist/teacher", words))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    images(folder / "data.npz")
    train(folder)
    return folder


@pytest.fixture
def made(tmp_path, first):
    """A finished run of two steps; with the path of its data as it was, relative."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def same_as_checkpoint(folder, step):
    model = load_file(folder / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    average = load_file(folder / "run" / "checkpoints" / f"step-{step:06d}" / "ema.safetensors")
    return all(torch.equal(value, average[f"module.network.{name}"]) for name, value in model.items())


def test_a_run_that_is_extended_publishes_its_new_model(made):
    assert same_as_checkpoint(made, 2)
    run = train(made, 4, "resume_from_checkpoint=latest", "evaluation.at_end=true")
    assert same_as_checkpoint(made, 4)
    figures = json.loads((made / "run" / "evaluation.json").read_text())
    assert numbers_of(figures["teacher"]) == run.metrics
    train(made, 4, "resume_from_checkpoint=latest")  # finished: nothing new
    assert json.loads((made / "run" / "evaluation.json").read_text()) == figures
    train(made, 5, "resume_from_checkpoint=latest")
    assert same_as_checkpoint(made, 5)
    assert not (made / "run" / "evaluation.json").exists()  # its figures were of another model
    assert not [path.name for path in (made / "run").iterdir() if path.name.startswith(".")]


def test_other_images_under_the_same_path_are_noticed(made):
    images(made / "data.npz", seed=1)
    with pytest.raises(ConfigError, match=r"the content of data '.*data\.npz' is not what"):
        train(made, 3, "resume_from_checkpoint=latest")
    assert train(made, 3, "resume_from_checkpoint=latest", "allow_changed_inputs=true").folder == made / "run"


@pytest.mark.parametrize("name", ["environment.json", "config.yaml"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 300, b"\xff\xfe", b"[1]"])
def test_a_damaged_side_file_does_not_end_a_run(made, name, damage):
    (made / "run" / name).write_bytes(damage)
    with pytest.raises(ConfigError, match="other seed"):
        train(made, 2, "resume_from_checkpoint=latest", "seed=5")
    train(made, 2, "resume_from_checkpoint=latest")  # what was refused has written nothing
    assert json.loads((made / "run" / "environment.json").read_text())["torch"] == torch.__version__
    assert "seed: 0" in (made / "run" / "config.yaml").read_text()


def test_a_second_process_is_refused_and_changes_nothing(made):
    before = (made / "run" / "config.yaml").read_text()
    with locked(made / "run"), pytest.raises(ConfigError, match="another process is at work"):
        train(made, 9, "resume_from_checkpoint=latest")
    assert (made / "run" / "config.yaml").read_text() == before


def test_a_folder_with_a_run_is_refused_and_one_with_leftovers_is_not(made):
    with pytest.raises(ConfigError, match="already holds a run"):
        train(made)
    other = made / "other"
    (other / "run" / ".config.partial-7.yaml").mkdir(parents=True)
    (other / "run" / ".lock").touch()
    images(other / "data.npz")
    train(other, 1)
    assert not [path.name for path in (other / "run").iterdir() if path.name.startswith(".")]


def test_a_folder_with_files_and_no_run_is_refused_though_a_run_is_to_be_continued(tmp_path):
    images(tmp_path / "data.npz")
    (tmp_path / "run" / "model").mkdir(parents=True)
    mine = {"config.yaml": "mine", "model/precious.txt": "mine", ".thesis.old-2024": "mine"}
    for name, text in mine.items():
        (tmp_path / "run" / name).write_text(text)
    with pytest.raises(ConfigError, match="holds files and no run"):
        train(tmp_path, 2, "resume_from_checkpoint=latest")
    found = {p.relative_to(tmp_path / "run").as_posix(): p for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == mine


def test_a_run_that_was_stopped_before_it_wrote_anything_begins_the_same_way(tmp_path):
    images(tmp_path / "data.npz")
    for name in ("samples", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True)
    assert train(tmp_path, 1).model_folder.is_dir()


def test_what_was_said_for_one_sitting_is_not_said_by_the_settings_of_the_run(made):
    train(made, 3, "resume_from_checkpoint=2", "allow_changed_inputs=true")
    settings = (made / "run" / "config.yaml").read_text()
    assert "\nresume_from_checkpoint: null\n" in settings
    assert "\nallow_changed_inputs: false\n" in settings
    assert load_config(Train, made / "run" / "config.yaml").config.max_train_steps == 3


def test_data_and_threads_may_have_moved(made, monkeypatch):
    (made / "elsewhere").mkdir()
    (made / "data.npz").rename(made / "elsewhere" / "data.npz")
    moved = f"data.path={made / 'elsewhere' / 'data.npz'}"
    assert train(made, 3, "resume_from_checkpoint=latest", moved, "num_threads=1").folder == made / "run"
    assert same_as_checkpoint(made, 3)
    images(made / "elsewhere" / "data.npz", seed=1)
    with pytest.raises(ConfigError, match=r"the content of data '.*data\.npz' is not what"):
        train(made, 4, "resume_from_checkpoint=latest", moved)


class Publishing:
    name = role = "student"

    def __init__(self, text):
        self.text = text

    def publish(self, model, folder, evaluation):
        folder.mkdir()
        (folder / "a.safetensors").write_text(model)
        (folder / "README.md").write_text(self.text)

    def others(self, evaluation):
        return {}


def test_the_same_model_keeps_its_card_and_what_was_put_beside_it(tmp_path):
    student = tmp_path / "student"
    publish(Publishing("measured"), "weights", student, {"metrics": {}})
    (student / "calibration.json").write_text("{}")
    publish(Publishing("not measured"), "weights", student, {})
    assert (student / "README.md").read_text() == "measured"
    publish(Publishing("measured again"), "weights", student, {"metrics": {}})
    assert (student / "README.md").read_text() == "measured again"
    assert (student / "calibration.json").exists()
    (student / "README.md").unlink()  # damaged
    publish(Publishing("mended"), "weights", student, {})
    assert (student / "README.md").read_text() == "mended"
    publish(Publishing("other"), "other weights", student, {})
    assert sorted(path.name for path in student.iterdir()) == ["README.md", "a.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_models_are_told_by_content_and_not_by_their_cards(made):
    model = made / "run" / "model"
    before = model_digest(str(model))
    (model / "README.md").write_text("other words")
    assert model_digest(str(model)) == before
    config = model / "unet" / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    assert model_digest(str(model)) != before


@pytest.mark.parametrize("where", [0, 50_000, 99_999])
def test_pairs_of_files_are_told_by_content_too(tmp_path, where):
    from diffdistill.data.pairs import Pair

    file = tmp_path / "a.bmp"
    file.write_bytes(bytes(100_000))
    pair = Pair(("a", file), ("b", b"b"), "text")
    before = pairs_digest([pair])
    changed = bytearray(100_000)
    changed[where] = 1
    file.write_bytes(changed)
    assert pairs_digest([pair]) != before
