"""Labels mean what folders and tables say: numbers are themselves, words are classes, surprises are refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from files_of_data import check, outcome, write

from diffdistill.data import load_images

PIXELS = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FOLDERS = {
    "of numbers with gaps": ({"3/a.png": 1, "10/a.png": 2}, ([1, 2], [3, 10], None)),
    "padded": ({"003/a.png": 1, "010/a.png": 2}, ([1, 2], [3, 10], None)),
    "of numbers in words": (
        {f"class_{i}/a.png": i for i in (10, 2, 1)},
        ([1, 2, 10], [0, 1, 2], ("class_1", "class_2", "class_10")),
    ),
    "negative": ({"-1/a.png": 1, "0/a.png": 2, "1/a.png": 3}, r"the class folder '-1': folders of numbers are labels"),
    "of fractions": ({"0.5/a.png": 1, "10.0/a.png": 2}, r"the class folder '0\.5': folders of numbers are labels"),
    "of exponents": ({"1e1/a.png": 1, "2e0/a.png": 2}, r"the class folder '1e1'"),
    "of numbers and one word": (
        {"1/a.png": 1, "2/a.png": 2, "unknown/a.png": 3},
        ([1, 2, 3], [0, 1, 2], ("1", "2", "unknown")),
    ),
    "of numbers among words": (
        {"9/a.png": 1, "10/a.png": 2, "cat/a.png": 3},
        r"~has classes of numbers and of words: '9' is a name, of label 0; call all classes by numbers",
    ),
    "of digits and letters": ({"0/a.png": 1, "1/a.png": 2, "A/a.png": 3}, ([1, 2, 3], [0, 1, 2], ("0", "1", "A"))),
    "from one on": ({f"{i}/a.png": i for i in range(1, 11)}, (list(range(1, 11)), list(range(1, 11)), None)),
    "of two spellings of one name": ({"caf\u00e9/a.png": 1, "cafe\u0301/a.png": 2}, r"two class folders called 'caf"),
    "of one spelling that macOS writes": (
        {"cafe\u0301/a.png": 1, "tea/a.png": 2},
        ([1, 2], [0, 1], ("caf\u00e9", "tea")),
    ),
    "that differ by case": (
        {"Cat/a.png": 1, "cat/a.png": 2},
        r"~the classes 'Cat' and 'cat', which differ by the case",
    ),
    "with white space": ({"cat /a.png": 1, "dog/a.png": 2}, ([1, 2], [0, 1], ("cat", "dog"))),
    "that are parts": (
        {f"{i:05d}/a.png": 1 for i in range(0, 70000, 10000)},
        r"7 class folders and one called '60000': .* or put all images into one folder if they are parts",
    ),
}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_class_folders(kind, form, caplog):
    files, expected = FOLDERS[kind]
    check(write(form, files), expected, caplog)


COLUMNS = {
    "of names in words' order of numbers": (["a10", "a2", "a2"], ([1, 0, 0], ("a2", "a10"))),
    "with spaces around": (["cat", " cat", "dog "], ([0, 0, 1], ("cat", "dog"))),
    "of floats": (["0.0", "1.0", "1.0"], r"has the label '0\.0' for line 2 of set/metadata\.csv: labels are whole"),
    "of savetxt": (["1.000e+00", "1.000e+01", "2.000e+00"], r"the label '1\.000e\+00' for line 2 of"),
    "of decimal commas": (["1,0", "2,0", "1,0"], r"has the label '1,0' for line 2 of set/metadata\.csv"),
    "negative": (["0", "-1", "1"], r"the label -1 for line 3 of set/metadata\.csv"),
    "of pandas' missing numbers": (["0", "nan", "1"], r"has no label for line 3 of set/metadata\.csv"),
    "of a spreadsheet's missing numbers": (["0", "1", "N/A"], r"has no label for line 4 of set/metadata\.csv"),
    "empty": (["cat", "", "dog"], r"has no label for line 3 of set/metadata\.csv: give every image one"),
    "with plus": (["+1", "2", "0"], ([1, 2, 0], None)),
    "of one number in two spellings": (["01", "1", "2"], r"has the labels '01' and '1', which are one number: write"),
    "of two digits": (["00", "01", "02"], ([0, 1, 2], None)),
    "huge": (["0", "99999999999", "1"], r"the label 99999999999 for line 3"),
    "of a class called none": (["none", "cat", "cat"], ([1, 0, 0], ("cat", "none"))),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_labels_of_a_table(kind, caplog):
    labels, expected = COLUMNS[kind]
    rows = "".join(f'{i}.png,"{label}"\n' for i, label in enumerate(labels))
    write("folder", {"0.png": 5, "1.png": 6, "2.png": 7, "metadata.csv": f"file_name,label\n{rows}"})
    check("set", expected if isinstance(expected, str) else ([5, 6, 7], *expected), caplog)


JSON = {
    "of bools": ("true", r"the label True for line 2 of set/metadata\.jsonl"),
    "of fractions": ("1.0", r"the label 1\.0 for line 2"),
    "of lists": ("[0]", r"the label \[0\] for line 2"),
    "of NaN": ("NaN", r"the label nan for line 2"),
    "null": ("null", r"has no label for line 2 of set/metadata\.jsonl"),
    "of a word among numbers": ('"cat"', r"the label 'cat' for line 2"),
}


@pytest.mark.parametrize("kind", JSON)
def test_labels_of_json(kind, caplog):
    value, expected = JSON[kind]
    rows = f'{{"file_name": "0.png", "label": 1}}\n{{"file_name": "1.png", "label": {value}}}\n'
    write("folder", {"0.png": 5, "1.png": 6, "metadata.jsonl": rows})
    check("set", expected, caplog)


def test_a_file_that_is_listed_twice(caplog):
    rows = "0.png,cat\n1.png,dog\n0.png,dog\n"
    write("folder", {"0.png": 5, "1.png": 6, "metadata.csv": f"file_name,label\n{rows}"})
    check("set", r"line 4 of set/metadata.csv gives 0.png the label 'dog' and line 2 'cat': an image has one", caplog)
    rows = "0.png,one\n1.png,two\n0.png,three\n"
    write("folder", {"metadata.csv": f"file_name,text\n{rows}"})
    check("set", ([5, 6, 5], None, None, ("one", "two", "three")), caplog)


def test_the_number_of_classes_does_not_depend_on_the_limit():
    np.savez("set.npz", images=PIXELS, labels=[0, 0, 1, 2])
    assert load_images("set.npz", limit=2).num_classes == 3
    write("folder", {f"{i}/a.png": i for i in range(4)})
    assert load_images("set", limit=2).num_classes == 4


@pytest.mark.parametrize("labels", ["labels", "y", "label", "targets"])
def test_labels_under_another_name_of_an_array_are_read(labels, caplog):
    np.savez("set.npz", images=PIXELS, **{labels: [2, 0, 1, 1]})
    check("set.npz", ([0, 64, 128, 192], [2, 0, 1, 1], None), caplog)


def test_arrays_that_may_be_labels(caplog):
    np.savez("set.npz", images=PIXELS, y=np.zeros(4, int), label=np.ones(4, int))
    check("set.npz", r"has the arrays label and y: call the one with the labels 'labels'", caplog)
    np.savez("set.npz", images=PIXELS, digit=np.zeros(4, int))
    check("set.npz", r"~set\.npz has images, digit, read without labels, which are called 'labels'", caplog)
    np.savez("set.npz", images=PIXELS, labels=np.array(["b10", "b9", "b9", "a"]))
    check("set.npz", ([0, 64, 128, 192], [2, 1, 1, 0], ("a", "b9", "b10")), caplog)


@pytest.mark.parametrize(
    ("images", "labels"), [("train_images", "labels"), ("x_train", "y"), ("x_train", "train_labels")]
)
def test_labels_beside_images_of_a_split_are_read(images, labels, caplog):
    np.savez("set.npz", **{images: PIXELS, labels: [2, 0, 1, 1]})
    check("set.npz", ([0, 64, 128, 192], [2, 0, 1, 1], None), caplog)


def test_labels_that_may_be_of_several_splits_are_said(caplog):
    np.savez("set.npz", x_train=PIXELS, x_test=PIXELS, y=[2, 0, 1, 1])
    check("set.npz", r"~has x_train, x_test, y, read without labels, which are called 'y_train'", caplog)
    np.savez("set.npz", x_train=PIXELS, x_test=PIXELS)
    assert "warning" not in outcome("set.npz", caplog)[1]
    np.savez("set.npz", train_images=PIXELS, digit=[2, 0, 1, 1])
    check("set.npz", r"~has train_images, digit, read without labels, which are called 'train_labels'", caplog)


def test_a_class_folder_behind_a_link(caplog):
    write("folder", {"cat/0.png": 1, "dog/0.png": 2})
    write("folder", {"0.png": 3, "more/1.png": 4}, "elsewhere")
    os.symlink(Path("elsewhere").resolve(), "set/bird")
    check("set", ([3, 4, 1, 2], [0, 0, 1, 2], ("bird", "cat", "dog")), caplog)
    os.symlink("/nowhere", "set/fish")
    check("set", r"there is nothing behind the link set/fish: mend it or take it out", caplog)
    Path("set/fish").unlink()
    os.symlink("..", "elsewhere/more/round")  # a link that leads back
    assert load_images("set").labels.tolist()[:2] == [0, 0]


PARTS = {
    "pictures of one folder": ({"images/0.png": 1, "images/1.png": 2}, ([1, 2], None, None)),
    "pictures of one folder, in capitals": ({"JPEGImages/0.png": 1}, ([1], None, None)),
    "masks beside": (
        {"images/0.png": 1, "annotations/trimaps/0.png": 2},
        r"has the folder 'images' beside 'annotations', and one is no class of pictures: give the folder 'images'",
    ),
    "masks beside, as in VOC": (
        {"JPEGImages/0.png": 1, "SegmentationClass/0.png": 2},
        r"has the folder 'JPEGImages' beside 'SegmentationClass'",
    ),
    "splits of pictures and masks": (
        {"images/train/0.png": 1, "images/val/0.png": 2, "masks/train/0.png": 3},
        r"has the folder 'images' beside 'masks'",
    ),
    "one class": ({"cat/0.png": 1, "cat/1.png": 2}, ([1, 2], [0, 0], ("cat",))),
}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("kind", PARTS)
def test_folders_that_are_parts_of_a_set(kind, form, caplog):
    files, expected = PARTS[kind]
    check(write(form, files), expected, caplog)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_files_called_by_several_splits_are_spoken_of(form, caplog):
    said = r"~images called test_0\.png and train_0\.png, of several splits by their names, and all are read as one"
    check(write(form, {"train_0.png": 1, "test_0.png": 2}), said, caplog)


def test_files_of_one_split_or_of_none_are_not_spoken_of(caplog):
    check(write("folder", {"train_0.png": 1, "train_1.png": 2}), ([1, 2], None, None), caplog)
    check(write("zip", {"train_0.png": 1, "test_0.png": 2, "cat.png": 3}), ([3, 2, 1], None, None), caplog)
    assert "several splits" not in caplog.text
