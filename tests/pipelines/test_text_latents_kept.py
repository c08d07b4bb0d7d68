"""Latents of a text run: encoded once, kept on disk under what they are made of, and the same at every start."""

import errno
import os

import pytest
import torch

pytest.importorskip("transformers")

from text_world import settings
from tiny_text import captioned_folder, stable_diffusion

from diffdistill import Denoiser
from diffdistill.data import stored
from diffdistill.errors import DataError, DiskError
from diffdistill.pipelines.text.data import text_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    stable_diffusion(folder / "sd")
    captioned_folder(folder / "images")
    return folder


@pytest.fixture(scope="module")
def teacher(made):
    return Denoiser.from_pretrained(str(made / "sd"))


@pytest.fixture
def start(made, teacher, tmp_path, monkeypatch):
    """The data of a run, and how many images were encoded for it."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    count = []
    real = type(teacher).encode
    monkeypatch.setattr(type(teacher), "encode", lambda self, images: count.append(len(images)) or real(self, images))

    def begun(keep="auto", **more):
        config = settings(made, images=True)
        count.clear()
        data = text_data(
            config.model_copy(update={"data": config.data.model_copy(update={"keep": keep, **more})}), teacher
        )
        return data, sum(count)

    return begun


def test_a_second_start_encodes_nothing_and_draws_the_same(start, tmp_path):
    memory, encoded = start("memory")
    assert encoded == len(memory)
    assert not (tmp_path / "cache" / "latents").exists()
    for keep, expected in (("auto", len(memory)), ("auto", 0), ("disk", 0), ("source", len(memory)), ("source", 0)):
        data, encoded = start(keep)
        assert encoded == expected  # a set that was not decoded is known by its files, and has latents of its own
        assert isinstance(data.latents, stored.Stored)
        assert data.latents.dtype == torch.float32
        for step in (0, 3):
            for mine, theirs in zip(memory.draw(2, 5, step), data.draw(2, 5, step), strict=True):
                assert torch.equal(mine, theirs)
        assert torch.equal(data.draw(2, 5, 1, rows=slice(1, 2))[0][1], memory.draw(2, 5, 1)[0][1])


def test_other_pictures_sizes_and_weights_have_latents_of_their_own(start, made):
    first, _ = start()
    assert start(image_size=32)[1] == len(first)
    assert start(limit=2)[1] == 2
    weights = next((made / "sd" / "vae").glob("*.safetensors"))
    before = weights.stat()
    os.utime(weights, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))
    assert start()[1] == len(first)
    assert start()[1] == 0
    os.utime(weights, ns=(before.st_mtime_ns, before.st_mtime_ns))  # the time of the change itself tells
    assert start()[1] == len(first)


def test_a_disk_that_is_full_or_small(start, tmp_path, monkeypatch):
    with pytest.raises(DiskError, match=r"the latents of .* are not kept on disk: it takes .* raise it"):
        start("source", disk_cache_gb=1e-9)
    data, encoded = start("auto", disk_cache_gb=1e-9)
    assert isinstance(data.latents, torch.Tensor)
    assert encoded == len(data)

    def full(file, row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored, "write_whole", full)
    with pytest.raises(DiskError, match=r"could not keep the latents of .* \(No space left on device\)"):
        start("source")
    assert [left.suffix for left in (tmp_path / "cache" / "latents").iterdir()] == [".lock"]


def test_a_damaged_latent_is_no_latent(start):
    data, _ = start()
    with (data.latents.folder / stored.ROWS).open("r+b") as file:
        file.write(b"\x01\x02\x03\x04")
    again, encoded = start()
    assert encoded == 0
    with pytest.raises(DataError, match=r"row 0 of the cache .* is damaged"):
        again.latents[0]
