"""`data inspect` of tar files, of captions beside images, of lists and splits: gone through to their end."""

import os
from pathlib import Path

import pytest
from files_of_data import look_alike, png, write

from diffdistill.data import load_images
from diffdistill.data.inspect import inspect_data


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(report):
    return [fault["reason"] for fault in report["training"]["refused"]]


PAIRS = {"a.png": 1, "a.txt": "one", "b.png": 2, "b.txt": "two", "c.png": 3, "c.txt": "three"}
FOLDERS = {f"cat/{name}": value for name, value in PAIRS.items()} | {"dog/d.png": 4, "dog/d.txt": "four"}
LABELS = {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "1", "c.png": 3, "c.cls": "0"}
JSON = {"a.png": 1, "a.json": '{"label": 0}', "b.png": 2, "b.json": '{"label": 1}'}

# Form, files, words of what is refused in its order, images, those without a label, empty captions.
FAULTY = {
    "tar: damaged image": ("tar", LABELS | {"b.png": b"x"}, ["b.png in set.tar is damaged"], 3, 0, None),
    "tar: a label missing": ("tar", LABELS | {"d.png": 4}, ["no label for d in"], 4, 1, None),
    "tar: a label wrong": ("tar", LABELS | {"b.cls": "-1"}, ["the label -1 for b"], 3, 1, None),
    "tar: a label no text": ("tar", LABELS | {"b.cls": b"\xff"}, ["b.cls in set.tar' is not UTF-8"], 3, 1, None),
    "tar: a caption missing": ("tar", PAIRS | {"d.png": 4}, ["no text for d in"], 4, 0, 1),
    "tar: a caption no text": ("tar", PAIRS | {"b.txt": b"\xff"}, ["b.txt in set.tar' is not UTF-8"], 3, 0, 1),
    "tar: a record damaged": ("tar", JSON | {"b.json": "{"}, ["its json is damaged", "no label for b"], 2, 1, None),
    "tar: two images": ("tar", LABELS | {"b.jpg": 5}, ["b in set.tar has the images"], 3, 0, None),
    "tar: a folder, loose": ("tar", FOLDERS | {"e.png": 5, "e.txt": "five"}, ["loose images (e.png)"], 5, 1, 0),
    "captions: one missing": ("folder", PAIRS | {"d.png": 4}, ["none for set/d.png"], 4, 0, 1),
    "captions: two": ("folder", PAIRS | {"b.caption": "zwei"}, ["the captions b"], 3, 0, 0),
    "captions: no text": ("folder", PAIRS | {"b.txt": b"\xff"}, ["b.txt' is not UTF-8"], 3, 0, 1),
    "zip, captions: one missing": ("zip", FOLDERS | {"dog/e.png": 5}, ["none for dog/e.png"], 5, 0, 1),
    "zip, captions: no text": ("zip", FOLDERS | {"cat/b.txt": b"\xff"}, ["cat/b.txt in set.zip' is not"], 4, 0, 1),
    "folder: splits in classes": (
        "folder", {"cat/train/a.png": 1, "dog/test/b.png": 2}, ["splits in it"] * 2, 2, 0, None,
    ),
    "folder: a deep list": ("folder", {"cat/a.png": 1, "dog/metadata.csv": "x", "dog/b.png": 2}, ["list"], 2, 0, None),
    "folder: negative": ("folder", {"-1/a.png": 1, "0/b.png": 2}, ["class folder '-1'"], 2, 0, None),
    "list: two labels": (
        "folder", {"a.png": 1, "b.png": 2, "metadata.csv": "file_name,label\na.png,1\na.png,0\nb.png,1\n"},
        ["gives a.png the label '0'"], 3, 0, None,
    ),
    "list: absent": (
        "folder", {"a.png": 1, "dataset.json": '{"labels": [["a.png", 0], ["b.png", 1]]}'},
        ["1 images that"], 1, 0, None,
    ),
    "list: a split missing": (
        "folder", {"a.png": 1, "b.png": 2, "metadata.csv": "file_name,split\na.png,train\nb.png,\n"},
        ["no 'split' for line 3"], 1, 0, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTY)
def test_all_is_counted_beyond_a_fault(kind, caplog):
    form, files, words, images, unlabelled, empty = FAULTY[kind]
    data = write(form, files)
    look_alike(data, caplog)
    report = inspect_data(data)
    assert [word in sentence for word, sentence in zip(words, refused(report), strict=True)] == [True] * len(words)
    assert (report["images"], (report["classes"] or {"unlabelled": 0})["unlabelled"]) == (images, unlabelled)
    assert (None if report["captions"] is None else report["captions"]["empty"]) == empty


SOUND = {
    "tar": ("tar", LABELS),
    "tar with captions": ("tar", PAIRS),
    "tar with records": ("tar", JSON),
    "tar of folders": ("tar", FOLDERS),
    "folder with captions": ("folder", PAIRS),
    "zip with captions": ("zip", FOLDERS),
    "folder of a tar": ("folder", {"train-0.tar": b""}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_read_is_not_left_out(kind, caplog):
    form, files = SOUND[kind]
    if kind == "folder of a tar":
        Path("set").mkdir()
        data = str(Path(write("tar", LABELS)).rename("set/train-0.tar").parent)
    else:
        data = write(form, files)
    look_alike(data, caplog)
    assert inspect_data(data)["left_out"] == {}


def test_what_is_left_out_is_listed_once(caplog):
    files = PAIRS | {".h.png": 1, "a.heic": b"", "boxes.csv": "", "labels.csv": "", "d": png(4)}
    look_alike(write("folder", files), caplog)
    report = inspect_data("set")
    assert {why: found["files"] for why, found in report["left_out"].items()} == {
        "hidden": [".h.png"], "other_picture": ["a.heic"], "other": ["boxes.csv", "d", "labels.csv"],
    }  # fmt: skip
    notes = report["training"]["notes"]
    assert ["labels.csv, which is not read" in notes[1], "without a picture's ending" in notes[0]] == [True, True]
    write("tar", LABELS | {"d.txt": "lost", "a.depth": "1", ".h.png": 1})
    report = inspect_data("set.tar")
    assert {why: found["files"] for why, found in report["left_out"].items()} == {
        "hidden": [".h.png"], "other": ["a.depth", "d.txt"],
    }  # fmt: skip
    assert "1 samples without an image" in report["training"]["notes"][0]


def test_folders_of_no_split_are_none(caplog):
    look_alike(write("folder", {"train/a.png": 1, "test/b.png": 2, "more/c.png": 3}), caplog)
    report = inspect_data("set")
    assert [row["name"] for row in report["splits"]] == ["test", "train"]
    assert report["left_out"] == {"no_split": {"count": 1, "files": ["more/c.png"]}}


def test_splits_of_a_column_are_told():
    rows = "file_name,split\na.png,train\nb.png,val\nc.png,validation\nd.png,train\n"
    write("folder", {"a.png": 1, "b.png": 1, "c.png": 3, "d.png": 4, "metadata.csv": rows})
    found = [(row["name"], row["images"], row["taken"], row["in_taken"]) for row in inspect_data("set")["splits"]]
    assert found == [("train", 2, True, 0), ("val", 2, False, 1)]


def test_a_missing_shard_is_gone_past(caplog):
    Path("set").mkdir()
    for number in (0, 2):
        Path(write("tar", LABELS)).rename(f"set/train-{number}-of-3.tar")
    look_alike("set", caplog)
    report = inspect_data("set")
    assert report["images"] == 6
    assert "number 1 is missing" in refused(report)[0]


def test_a_folder_that_a_link_leads_to_is_read_by_its_own_name():
    write("folder", {"cat/a.png": 1, "dog/b.png": 2})
    os.symlink("../dog", "set/cat/linked")
    os.symlink("../../more", "set/dog/far")
    write("folder", {"c.png": 3}, "more")
    found = load_images("set")
    assert (found.labels.tolist(), [int(image.max()) for image in found.images]) == ([0, 1, 1], [1, 2, 3])
    assert inspect_data("set")["left_out"] == {"link": {"count": 1, "files": ["cat/linked/"]}}


def test_sixteen_bits_that_hold_twelve_are_noted():
    write("folder", {"a.png": png(4000, "I;16"), "b.png": png(2000, "I;16")})
    assert "go up to 4000 of 65535" in inspect_data("set")["training"]["notes"][0]
