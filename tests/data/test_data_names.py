"""What names of files and folders say: their order, splits and classes; the same of a folder and of a zip of it."""

import io
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from diffdistill.data import load_images
from diffdistill.data.layout import by_number
from diffdistill.errors import DataError


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "png")
    return file.getvalue()


def write(form: str, names: dict[str, int | str]) -> str:
    """Pictures of one level of gray, and texts, under these names, in a folder or a zip of it."""
    for name, value in names.items():
        file = Path("set", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value.encode() if isinstance(value, str) else png(value))
    if form == "folder":
        return "set"
    with zipfile.ZipFile("set.zip", "w") as archive:
        for name in reversed(names):
            archive.write(Path("set", name), name)
    return "set.zip"


def levels(images) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.images]


both = pytest.mark.parametrize("form", ["folder", "zip"])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@both
def test_folders_of_numbers_are_labels(form):
    numbers = [*range(12), 30]
    found = load_images(write(form, {f"{i}/a.png": i for i in numbers}))
    assert levels(found) == found.labels.tolist() == numbers
    assert found.class_names is None


@both
def test_folders_of_numbers_that_count_no_classes_are_refused(form):
    with pytest.raises(DataError, match="class folders '01' and '1', one number"):
        load_images(write(form, {"1/a.png": 1, "01/b.png": 2}))
    shutil.rmtree("set")
    with pytest.raises(DataError, match=r"2 class folders and one called '20231105': .* begin their names with a"):
        load_images(write(form, {"20231104/a.png": 1, "20231105/b.png": 2}))


@both
def test_pictures_are_in_the_order_of_their_numbers(form):
    names = {f"{i}.png": i for i in (0, 10, 11, 2, 1, 100, 9)}
    assert levels(load_images(write(form, names))) == [0, 1, 2, 9, 10, 11, 100]


def test_the_order_by_number_is_total_and_that_of_padded_names():
    names = ["a", "a2", "a02", "a10", "b/1", "b/02", "b1/0", "7" * 5000, "٣", "²"]
    keys = sorted(by_number(PurePosixPath(name)) for name in names)
    assert len(set(keys)) == len(names)
    padded = [f"{kind}{i:03d}.png" for kind in ("A", "a", "img_") for i in range(12)]
    assert sorted(padded, key=lambda name: by_number(PurePosixPath(name))) == sorted(padded)


@both
def test_splits_beside_others_are_no_classes(form):
    data = write(form, {"train/cat/0.png": 1, "train/dog/1.png": 2, "test/cat/2.png": 200, "extra/dog/3.png": 3})
    train = load_images(data)
    assert (levels(train), train.labels.tolist(), train.class_names) == ([1, 2], [0, 1], ("cat", "dog"))
    assert levels(load_images(data, split="test")) == [200]
    assert levels(load_images(data, split="extra"))[0] == 3
    with pytest.raises(DataError, match="no split 'validation': choose one of extra, test, train"):
        load_images(data, split="validation")


@both
def test_a_split_of_class_folders_beside_another_folder_is_asked_about(form):
    with pytest.raises(DataError, match="folder 'train', with folders of images in it, beside 'more': is it a split"):
        load_images(write(form, {"train/cat/0.png": 1, "more/1.png": 2}))


@both
def test_a_class_may_be_called_train(form):
    found = load_images(write(form, {"train/0.png": 1, "car/1.png": 2, "bus/2.png": 3}))
    assert found.class_names == ("bus", "car", "train")


@both
def test_one_class_folder_is_one_class(form):
    found = load_images(write(form, {"cat/0.png": 1, "cat/1.png": 2}))
    assert (found.labels.tolist(), found.class_names) == ([0, 0], ("cat",))


@both
@pytest.mark.parametrize("parent", ["", "data/", "a/b/"])
def test_a_folder_around_the_set_changes_nothing(form, parent):
    found = load_images(write(form, {f"{parent}cat/0.png": 1, f"{parent}dog/0.png": 2}))
    assert (found.labels.tolist(), found.class_names) == ([0, 1], ("cat", "dog"))


@both
@pytest.mark.parametrize("parent", ["", "data/", "a/b/"])
def test_a_list_of_labels_inside_a_folder_is_used(form, parent):
    listing = json.dumps({"labels": [["0.png", 5], ["x/1.png", 3]]})
    files = {f"{parent}0.png": 1, f"{parent}x/1.png": 2, f"{parent}dataset.json": listing}
    assert load_images(write(form, files)).labels.tolist() == [5, 3]


def test_a_zip_of_two_lists_or_of_a_table_is_refused():
    files = {"a/0.png": 1, "a/dataset.json": "{}", "b/dataset.json": "{}"}
    with pytest.raises(DataError, match=r"set\.zip has 2 lists of images, such as .*: leave one in it"):
        load_images(write("zip", files))
    found = load_images(write("zip", {"a/0.png": 1, "a/metadata.csv": "file_name,label\n0.png,3\n"}))
    assert found.labels.tolist() == [3]


@both
def test_loose_pictures_beside_class_folders_are_refused(form):
    with pytest.raises(DataError, match=r"has both loose images .* and (sub)?folders of images"):
        load_images(write(form, {"0.png": 1, "cat/1.png": 2}))


def test_odd_names_of_members_are_read():
    with zipfile.ZipFile("odd.zip", "w") as archive:
        archive.writestr("./b//1.png", png(1))
        archive.writestr("a/./0.png", png(2))
    assert levels(load_images("odd.zip")) == [2, 1]


def test_a_link_to_nowhere_among_loose_pictures_is_named():
    write("folder", {"a.png": 1})
    os.symlink("/nowhere/c.png", "set/c.png")
    with pytest.raises(DataError, match=r"there is no image set/c\.png"):
        load_images("set")


@both
def test_other_endings_of_jpeg_are_read_and_other_pictures_are_said(form, caplog):
    data = write(form, {"a.png": 1, "b.jfif": 2, "c.jpe": 3, "d.tga": 4, "e.HEIC": 5, "notes.txt": "", "f.tga": 6})
    with caplog.at_level(logging.WARNING):
        assert levels(load_images(data)) == [1, 2, 3]
    assert f"{data} has pictures of kinds that are not read, and passed over (1 .heic, 2 .tga)" in caplog.text


@pytest.mark.parametrize(
    "names", [("mnist-train", "mnist-test"), ("a.train-0001", "a.val-0001"), ("train-0", "x_test")]
)
def test_parquet_files_are_of_the_split_that_is_a_word_of_their_names(names):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    Path("set").mkdir()
    for name, value in zip(names, (1, 200), strict=True):
        pq.write_table(pa.table({"image": [png(value)], "label": [0]}), f"set/{name}.parquet")
    assert levels(load_images("set")) == [1]
    pq.write_table(pa.table({"image": [png(3)], "label": [0]}), "set/both-train-test.parquet")
    with pytest.raises(DataError, match=r"has the file both-train-test\.parquet, of the splits test and train"):
        load_images("set")


def test_labels_of_a_table_that_are_numbers_are_no_names():
    for bad in ("-1", "1.0", "+0.5"):
        write("folder", {"0.png": 1, "1.png": 2, "metadata.csv": f"file_name,label\n0.png,{bad}\n1.png,0\n"})
        with pytest.raises(DataError, match="labels are whole numbers from 0 up"):
            load_images("set")
    write("folder", {"metadata.csv": "file_name,label\n0.png,99999999999\n1.png,0\n"})
    with pytest.raises(DataError, match="labels are whole numbers from 0 to 2147483647"):
        load_images("set")
    write("folder", {"metadata.csv": "file_name, Label\n0.png,10\n1.png,9\n"})
    found = load_images("set")
    assert (found.labels.tolist(), found.class_names) == ([10, 9], None)


def test_a_table_that_is_no_csv_is_refused_with_the_line():
    for rows, sentence in (
        ("file_name,text\n0.png,a red car, on\n", "line 2 of 'set/metadata.csv' has 3 fields and the header 2"),
        (f"file_name,text\n0.png,{'a' * 140000}\n", "line 2 of 'set/metadata.csv' is not CSV"),
        ('file_name,text\n0.png,"a\n', "line 2 of 'set/metadata.csv' is not CSV"),
        ("name,text\n0.png,a\n", "line 1 of 'set/metadata.csv' names no column 'file_name'"),
    ):
        write("folder", {"0.png": 1, "metadata.csv": rows})
        with pytest.raises(DataError, match=sentence):
            load_images("set")
    write("folder", {"metadata.csv": 'file_name,text\n0.png,"a \u2028 car, red"\n'})
    assert load_images("set").texts == ("a \u2028 car, red",)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"metadata.jsonl": '{"file_name": "0.png", "text": "smile \\ud83d"}\n'}, "line 1 of .* half of a character"),
        ({"metadata.jsonl": '{"file_name": "0.png", "label": "\\udc00"}\n'}, "line 1 of .* half of a character"),
        ({"dataset.json": '{"labels": [["0.png", "\\udc00"]]}'}, "a label for image 0 .set/0.png. that holds"),
        ({"samples.json": '{"images": [{"file": "0.png", "prompt": "\\udc00"}]}'}, "a text for image 0 that holds"),
    ],
)  # fmt: skip
def test_half_of_a_character_is_no_text(files, sentence):
    with pytest.raises(DataError, match=sentence):
        load_images(write("folder", {"0.png": 1, **files}))


def test_whole_characters_that_json_escapes_are_read():
    write("folder", {"0.png": 1, "metadata.jsonl": '{"file_name": "0.png", "text": "\\ud83d\\ude00 \\u00e4"}\n'})
    assert load_images("set").texts == ("😀 ä",)
