"""The VAE's moments of pairs, kept on disk: the same steps to the last bit, and no VAE at a second start."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

from ranks import ranks
from tiny_text import pair_folder, stable_diffusion_xl

from diffdistill import processes
from diffdistill.config.align import Align
from diffdistill.data.pairs import load_pairs
from diffdistill.errors import DiskError
from diffdistill.pipelines.text import encoded
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.align import AlignTask

STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    stable_diffusion_xl(folder / "sdxl")  # which is told of the sizes of files, and of their squares
    pair_folder(folder / "pairs")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latents"


def made(world, keep, **more):
    data = {"path": str(world / "pairs"), "keep": keep, "horizontal_flip": True, **more}
    config = Align(
        output_dir="unused", model=str(world / "sdxl"), data=data, method={"name": "mapo"}, max_train_steps=STEPS,
        train_batch_size=4, lora={"rank": 2},
    )  # fmt: skip
    task = AlignTask(config, load_pipeline(config.model), load_pairs(config.data.path), Device("no", 1))
    task.keep_moments()
    return task


def trained(task):
    for step in range(STEPS):
        seed_step(3, step)
        metrics = task.update(step)
    weights = {name: value.detach().clone() for name, value in task.parts["network"].state_dict().items()}
    return weights | {name: torch.as_tensor(value).double() for name, value in metrics.items()}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def without_vae(task):
    task.model.pipeline.vae.encode = None
    return task


def test_steps_are_those_of_images_that_are_encoded_as_they_are_drawn(world, cache):
    drawn = trained(made(world, "memory"))
    assert not cache.exists()
    same(drawn, trained(without_vae(made(world, "disk"))))
    before = sorted(cache.rglob("*"))
    again = made(world, "auto")
    assert sorted(cache.rglob("*")) == before
    same(drawn, trained(without_vae(again)))


def test_images_that_change_are_encoded_anew(world, cache, tmp_path):
    pair_folder(tmp_path / "pairs")
    files = sorted((tmp_path / "pairs").rglob("*.png"))
    (tmp_path / "sdxl").symlink_to(world / "sdxl")
    made(tmp_path, "disk")
    first = {folder.name for folder in cache.iterdir() if folder.is_dir()}
    files[0].write_bytes(files[1].read_bytes())
    made(tmp_path, "disk")
    assert len({folder.name for folder in cache.iterdir() if folder.is_dir()} - first) == 1


def test_auto_encodes_no_more_than_the_run_draws_and_where_there_is_room(world, cache, monkeypatch):
    monkeypatch.setattr(encoded, "no_room", lambda *_: "the disk is full")
    assert made(world, "auto").moments is None
    with pytest.raises(DiskError, match="are not kept on disk: the disk is full"):
        made(world, "disk")
    monkeypatch.undo()
    task = made(world, "memory")
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(cache.parent))
    pairs = task.pairs.pairs * 20  # more than three steps draw
    task.pairs = type(task.pairs)(pairs, task.pairs.name, task.pairs.counts, "more")
    task.config = task.config.model_copy(update={"data": task.config.data.model_copy(update={"keep": "auto"})})
    task.keep_moments()
    assert task.moments is None
    assert not list(cache.glob("*"))


@pytest.mark.dist
def test_two_processes_encode_in_turn_and_keep_what_one_does(world, tmp_path, monkeypatch):
    def rows():
        with processes.together():
            return {"rows": made(world, "disk").moments.rows[:]}

    one = rows()["rows"]
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "other"))
    for found in ranks(lambda _: rows(), 2, tmp_path / "ranks"):
        assert torch.equal(found["rows"], one)
