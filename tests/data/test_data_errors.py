"""Everything a user can get wrong about DATA is one sentence: what was given, what is allowed, what to do."""

import contextlib
import errno
import json
import os
import pickle  # noqa: TID251 - to show that one is never opened
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wrong_data import ALLOWED, Trap, begins, says

from diffdistill.data import load_images
from diffdistill.data.formats import Format
from diffdistill.data.source import Source
from diffdistill.errors import DataError


def pictures(folder: str, count: int = 4, mode: str = "L", size=(7, 5)) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new(mode, size, i).save(path / f"{i}.png")
    return path


def test_nothing_there(here):
    for data in ("missing", "missing.npz", "./missing/data", "/no/such/folder", "", " ", "a\0b"):
        says(f"there is no file or folder {data!r}: give {ALLOWED}", data)
    (here / "runs").mkdir()
    says(f"there is no file or folder 'runs/mistyped': give {ALLOWED}", "runs/mistyped")  # the Hub is not asked
    says(f"{'x' * 5000} cannot be read (File name too long): check the path and its rights", "x" * 5000)


def test_unknown_builtin(here):
    begins("nothing named 'cifar' is bundled: choose one of emoji, ", "builtin:cifar")
    begins("nothing named '../secret' is bundled", "builtin:../secret")


def test_builtin_that_is_a_model(here, monkeypatch):
    (here / "set").mkdir()
    (here / "set" / "train-images-idx3-ubyte").write_bytes(b"")
    (here / "teacher").mkdir()
    monkeypatch.setattr("diffdistill.assets.ROOTS", (here,))
    says("builtin:teacher is no data set: choose one of builtin:set", "builtin:teacher")


def test_empty_folder(here):
    (here / "empty").mkdir()
    (here / "empty" / "notes.txt").write_text("no picture")
    says("empty is a folder without images: give one with images, parquet or IDX files", "empty")


def test_wrong_kinds_of_file(here):
    Path("notes.txt").write_text("hello")
    says(f"notes.txt is in no format that is known: give {ALLOWED}", "notes.txt")
    pictures("set")
    says("set/0.png is a single image: give the folder it lies in", "set/0.png")
    for name in ("set.pkl", "model.pt", "model.ckpt"):
        Path(name).write_bytes(pickle.dumps(Trap()))
        says(f"{name} may be a pickle, which runs code when it is opened, so it is not: give {ALLOWED}", name)


def test_the_trap_works(here):
    pickle.loads(pickle.dumps(Trap()))  # noqa: S301
    (here / "opened").unlink()


@pytest.mark.parametrize("name", ["set.npz", "set.npy"])
def test_a_pickle_under_another_name_is_never_opened(here, name):
    Path(name).write_bytes(pickle.dumps(Trap()))
    begins(f"{name} is damaged or not a", name)


def test_sizes_that_differ(here):
    pictures("set", 3)
    Image.new("L", (8, 5)).save("set/2.png")
    says(
        "set has images of several sizes: set/0.png is 7x5, set/2.png is 8x5; "
        "set the image size (data.image_size) to bring them to one",
        "set",
    )
    assert load_images("set", image_size=5).images.shape == (3, 1, 5, 5)


def test_channels_that_differ(here):
    pictures("gray")
    pictures("colour", mode="RGB")
    end = "convert the images or choose another model"
    says(f"gray is grayscale (1 channel), but the model takes RGB (3 channels): {end}", "gray", channels=3)
    says(f"colour is RGB (3 channels), but the model takes grayscale (1 channel): {end}", "colour", channels=1)
    says(f"colour is RGB (3 channels), but the model takes 4 channels: {end}", "colour", channels=4)


def test_numbers_that_do_not_fit(here):
    pictures("set")
    says("set has 4 images, but 5 were asked for: lower the limit", "set", limit=5)
    says("limit is 0: it must be at least 1", "set", limit=0)
    says("image_size is -3: it must be at least 1", "set", image_size=-3)
    says("set has no split 'test': it is one set; leave the split at 'train' to use all of it", "set", split="test")


def test_more_than_the_memory(here, monkeypatch):
    pictures("set", 4, size=(1000, 1000))
    monkeypatch.setattr("diffdistill.data.pixels.total_memory", lambda: 3_000_000)
    says(
        "set takes 0.0 GB of memory (4 images of 1000x1000), this machine has 0.0 GB: "
        "set data.keep to auto, disk or source, or lower data.image_size or data.limit",
        "set",
    )
    assert load_images("set", limit=3).images.shape == (3, 1, 1000, 1000)


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_and_unreadable_images(here, form):
    Path("set").mkdir()
    path = Path(f"set/a.{form}")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    sentence = f"set/a.{form} is damaged or not an image: mend it or take it out"
    for length in (0, 1, 10, len(whole) // 2):
        path.write_bytes(whole[:length])
        says(sentence, "set")
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # no interpreter is started for it
    says(sentence, "set")


def test_random_damage_is_a_sentence_or_harmless(here):
    """Flipped bytes in any place: an image or a DataError, never another exception."""
    rng = np.random.default_rng(0)
    Path("set").mkdir()
    picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for form in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"):
        path = Path(f"set/a.{form}")
        picture.save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), rng.choice([40, 4000])), 3)
            damaged[places] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(DataError):
                load_images("set", image_size=16)
        path.unlink()


def test_decompression_bombs(here, monkeypatch):
    pictures("set", 1, size=(50, 50))
    for limit in (1500, 1000):  # Pillow warns of the one and refuses the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        says("set/0.png has more than 0 million pixels: make it smaller or take it out", "set")


def test_class_folders_that_do_not_fit(here):
    pictures("set/cat")
    (here / "set" / "dog").mkdir()
    says("set has the class folder 'dog' without an image: fill it or remove it", "set")
    (here / "set" / "dog").rmdir()
    Image.new("L", (7, 5)).save("set/stray.png")
    says(
        "set has both loose images (stray.png) and subfolders of images (cat): put all into class subfolders, or none",
        "set",
    )


def test_metadata_that_does_not_fit(here):
    pictures("set", 2)
    path = Path("set/metadata.jsonl")
    rows = [{"file_name": "0.png", "label": 0}, {"file_name": "1.png", "label": 1}]

    def write(second: object) -> None:
        path.write_text(json.dumps(rows[0]) + "\n" + (second if isinstance(second, str) else json.dumps(second)))

    write("{'file_name': 1}")
    begins("line 2 of 'set/metadata.jsonl' is not JSON (", "set")
    write([1])
    begins("line 2 of 'set/metadata.jsonl' is no JSON object: write {", "set")
    for row in ({"label": 1}, {"file_name": ""}, {"file_name": 3}):
        write(row)
        says("line 2 of set/metadata.jsonl has no 'file_name': name the image, relative to the folder", "set")
    write({"file_name": "9.png", "label": 1})
    says("there is no image set/9.png (line 2 of set/metadata.jsonl): add it or take it off the list", "set")
    for escape in ("../other.png", "/etc/passwd", "a/../../b.png", "C:\\b.png", "..\\b.png"):
        write({"file_name": escape, "label": 1})
        says(
            f"set/metadata.jsonl names the file {escape!r}, which lies outside of it: use paths inside the set", "set"
        )
    write({"file_name": "1.png"})
    says("set has no label for line 2 of set/metadata.jsonl: give every image one, or none", "set")
    write({"file_name": "1.png", "label": -2})
    says("set has the label -2 for line 2 of set/metadata.jsonl: labels are whole numbers from 0 up", "set")
    path.write_text("")
    says("set is a folder without images: give one with images, parquet or IDX files", "set")
    path.write_bytes(b'{"file_name": "\xff.png"}')
    says("line 1 of 'set/metadata.jsonl' is not UTF-8 (byte 15): save the file as UTF-8", "set")
    path.unlink()
    Path("set/metadata.csv").write_text("file,label\n0.png,1\n")
    says(
        "line 1 of 'set/metadata.csv' names no column 'file_name', only 'file', 'label': begin with a header such as "
        "file_name,text",
        "set",
    )


def test_no_permission(here, monkeypatch):
    pictures("set")

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for refused in ((Image, "open"), (Path, "iterdir")):
        with monkeypatch.context() as patch:
            patch.setattr(*refused, refuse)
            name = "set/0.png" if refused[1] == "open" else "set"
            says(f"{name} cannot be read (Permission denied): check the path and its rights", "set")


def test_labels_that_a_reader_counts_wrong_are_told_with_the_set(here, monkeypatch):
    pictures("set")
    row = Format("mine", 0, "mine", lambda *_: True, lambda *_: Source(2, [], np.zeros(3, np.int64)))
    monkeypatch.setattr("diffdistill.data.formats.by_rank", lambda: [row])
    says("set has 2 images and 3 labels: give each image one", "set")
