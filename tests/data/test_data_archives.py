"""A zip says what the folder in it says; lists that do not fit their images are refused."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from files_of_data import check, content, png, write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def listing(*labels: object) -> str:
    return json.dumps({"labels": [list(label) for label in labels]})


ZIPS = {
    "names of classes": ({"0.png": 1, "dataset.json": listing(["0.png", "dog"])}, ([1], [0], ("dog",))),
    "an object": ({"0.png": 1, "dataset.json": '{"labels": {"0.png": 3}}'}, ([1], [3], None)),
    "Windows' paths": ({"x/0.png": 1, "dataset.json": listing(["x\\0.png", 3])}, ([1], [3], None)),
    "a dot before": ({"x/0.png": 1, "dataset.json": listing(["./x/0.png", 3])}, ([1], [3], None)),
    "fewer images than labels": (
        {"0.png": 1, "dataset.json": listing(["0.png", 3], ["1.png", 4], ["2.png", 5])},
        r"dataset\.json in set.* lists 2 images that are not there, such as 1\.png: add them",
    ),
    "two labels of one": (
        {"0.png": 1, "dataset.json": listing(["0.png", 3], ["0.png", 4])},
        r"gives 0\.png the labels 3 and 4: an image has one",
    ),
    "no label": ({"0.png": 1, "dataset.json": listing(["0.png", None])}, r"has no label for image 0 \(.*0\.png\)"),
    "a vector": ({"0.png": 1, "dataset.json": listing(["0.png", [0, 1]])}, r"has the label \[0, 1\] for image 0"),
    "numbers for files": ({"0.png": 1, "dataset.json": listing([0, 3])}, r"is not of the form"),
    "a list": ({"0.png": 1, "dataset.json": "[]"}, r"is not of the form"),
    "no labels": ({"0.png": 1, "dataset.json": '{"labels": null}'}, ([1], None, None)),
    "nothing": ({"0.png": 1, "dataset.json": "{}"}, ([1], None, None)),
    "one-based": (
        {"0.png": 1, "1.png": 2, "dataset.json": listing(["0.png", 1], ["1.png", 2])},
        ([1, 2], [1, 2], None),
    ),
    "pictures by a mark alone": (
        {"a.png": 1, "b": png(2), "c.png_large": png(3), "d.dat": "x"},
        r"~has 2 pictures without a picture's ending, passed over \(b, c\.png_large\); let",
    ),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("kind", ZIPS)
def test_lists_of_labels(kind, form, caplog):
    files, expected = ZIPS[kind]
    check(write(form, files), expected, caplog)


PACKED = {
    "Windows' paths": ({"cat\\0.png": 1, "dog\\1.png": 2}, ([1, 2], [0, 1], ("cat", "dog"))),
    "a parent, classes, splits": (
        {"data/train/cat/0.png": 1, "data/train/dog/1.png": 2, "data/test/cat/2.png": 200},
        ([1, 2], [0, 1], ("cat", "dog")),
    ),
    "a parent and a note": (
        {"data/cat/0.png": 1, "data/dog/1.png": 2, "README.md": "x"},
        ([1, 2], [0, 1], ("cat", "dog")),
    ),
    "macOS's copies": ({"cat/0.png": 1, "__MACOSX/cat/._0.png": "x", "dog/.DS_Store": "x"}, ([1], [0], ("cat",))),
    "its own folder": ({"set/0.png": 1, "set/1.png": 2}, ([1, 2], None, None)),
    "a server's thumbnails": (
        {"cat/0.png": 1, "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.png": 9, "dog/1.png": 2},
        ([1, 2], [0, 1], ("cat", "dog")),
    ),
    "nothing": ({}, r"set\.zip holds no images"),
    "no image": ({"a.txt": "x"}, r"set\.zip holds no images"),
    "loose and in folders": ({"0.png": 1, "cat/1.png": 2}, r"has both loose images \(0\.png\) and subfolders"),
    "no picture": ({"cat/0.png": "rubbish", "dog/1.png": 2}, r"cat/0\.png in set\.zip is damaged or not an image"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_zips_as_people_make_them(kind, caplog):
    files, expected = PACKED[kind]
    check(write("zip", files), expected, caplog)


def test_a_member_twice(caplog):
    with zipfile.ZipFile("set.zip", "w") as archive:
        archive.writestr("a/0.png", content(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/0.png", content(2))
    check("set.zip", r"set\.zip has the file a/0\.png twice: leave one in it", caplog)


def test_a_zip_in_a_zip_and_a_cut_one(caplog):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("0.png", content(1))
    check(
        write("zip", {"0.png": 1, "inner.zip": inner.getvalue()}),
        r"~set\.zip has inner\.zip beside its images",
        caplog,
    )
    Path("set.zip").write_bytes(Path("set.zip").read_bytes()[:-30])
    check("set.zip", r"set\.zip begins with something else than its first file: it is damaged", caplog)
    Path("set.zip").write_bytes(Path("set.zip").read_bytes()[:100])
    check("set.zip", r"set\.zip is damaged or not a zip file \(.*\): make it again", caplog)
