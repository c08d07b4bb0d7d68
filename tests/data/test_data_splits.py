"""No picture of another split is handed out, no part of a set is left out without a word."""

import os
from pathlib import Path

import numpy as np
import pytest
from files_of_data import check, in_form, outcome, png, write

from diffdistill.data import load_images
from diffdistill.data.layout import are_splits
from diffdistill.data.source import split_of

FORMS = pytest.mark.parametrize("form", ["folder", "zip", "tar"])
NO_TEST = ([1, 2], [0, 1], ("cat", "dog"))
TWO = {"cat/1.png": 1, "dog/2.png": 2}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def under(folder: str, files: dict) -> dict:
    return {f"{folder}/{name}": value for name, value in files.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train2017", "train"), ("Training images", "train"), ("val_256", "validation"), ("testA", "test"),
     ("images_test", "test"), ("dev", "validation"), ("eval", "test"), ("train station", None), ("strain", None),
     ("tester", None), ("trains", None), ("test_tube", None)],
)  # fmt: skip
def test_the_split_that_a_name_says(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("folders", "expected"),
    [(["train", "dev"], True), (["train", "holdout"], True), (["DIV2K_train_HR", "DIV2K_valid_HR"], True),
     (["train2014", "val2014", "annotations"], True), (["train", "unlabeled"], True), (["bus", "train"], False),
     (["bullet train", "cat"], False), ([], False)],
)  # fmt: skip
def test_folders_that_are_splits(folders, expected):
    assert are_splits(folders) == expected


OTHERS = ["test", "dev", "val", "validation", "valid2017", "testing", "holdout", "eval", "unlabeled", "extra"]


@FORMS
@pytest.mark.parametrize("other", OTHERS)
def test_another_split_is_not_in_training(form, other, caplog):
    check(write(form, under("train", TWO) | {f"{other}/cat/3.png": 200}), NO_TEST, caplog)


@FORMS
@pytest.mark.parametrize("other", OTHERS)
def test_flat_folders_of_splits_are_no_classes(form, other, caplog):
    check(write(form, {"train/1.png": 1, f"{other}/2.png": 200}), ([1], None, None), caplog)


SPLITS = {
    "annotations beside": (under("train2017", TWO) | {"val2017/cat/3.png": 200, "annotations/a.json": "{}"}, NO_TEST),
    "below a folder of pictures": (under("images/train", TWO) | {"images/val/cat/3.png": 200}, NO_TEST),
    "below the classes": (
        {"cat/train/0.png": 1, "cat/test/1.png": 200, "dog/train/2.png": 2},
        r"the class folder 'cat' with splits in it \(test, train\): put the folders of splits above .* as test/cat",
    ),
    "as in MVTec": (
        {"bottle/train/good/0.png": 1, "bottle/test/broken/0.png": 200, "cable/train/good/0.png": 1},
        r"the class folder 'bottle' with splits in it",
    ),
    "two of training": (
        {"train2014/cat/0.png": 1, "train2017/cat/0.png": 2, "val2017/cat/0.png": 3},
        r"has both 'train2014' and 'train2017', of the split 'train': give one of them as the data",
    ),
    "two domains": (
        {f"{folder}/0.png": 1 for folder in ("trainA", "trainB", "testA", "testB")},
        r"has both 'trainA' and 'trainB', of the split 'train'",
    ),
    "train and training": ({"train/0.png": 1, "training/0.png": 2}, r"has both 'train' and 'training'"),
    "train and Train": ({"train/0.png": 1, "Train/0.png": 2}, r"has both 'Train' and 'train', of the split 'train'"),
    "with a suffix": (
        {"DIV2K_train_HR/0.png": 1, "DIV2K_valid_HR/0.png": 200},
        ([1], None, None),
    ),
}


@FORMS
@pytest.mark.parametrize("kind", SPLITS)
def test_folders_of_splits(form, kind, caplog):
    files, expected = SPLITS[kind]
    check(write(form, files), expected, caplog)


@FORMS
def test_a_folder_of_no_split_beside_splits_is_said(form, caplog):
    data = write(form, {"train/0.png": 1, "test/1.png": 200, "more/2.png": 3, "labels/0.txt": "x"})
    check(data, ([1], None, None), caplog)
    check(data, rf"~{data} has folders of splits, and beside them 'more', of no split and not read$", caplog)


def test_a_split_may_be_asked_for_by_its_own_name(caplog):
    data = write("folder", {"train2014/0.png": 1, "train2017/0.png": 2, "val2017/0.png": 3})
    check(data, ([2],), caplog, split="train2017")
    check(data, ([3],), caplog, split="validation")
    check(data, r"no split 'test': choose one of train2014, train2017, val2017", caplog, split="test")


def csv(rows: str, head: str = "file_name,label") -> dict:
    return {"metadata.csv": f"{head}\n{rows}"}


ROOT = {f"{folder}/{i}.png": value for i, (folder, value) in enumerate([("train", 1), ("train", 2), ("test", 200)])}
ROWS = "train/0.png,a\ntrain/1.png,b\ntest/2.png,a\n"
TABLES = {
    "a table above": (ROOT | csv(ROWS), ([1, 2], [0, 1], ("a", "b")), ([200], [0], ("a",))),
    "a table above, below a folder": (
        under("data", ROOT) | csv(ROWS.replace("t", "data/t", 1).replace("\nt", "\ndata/t")),
        ([1, 2], [0, 1], ("a", "b")),
        ([200], [0], ("a",)),
    ),
    "a column": (
        {"0.png": 1, "1.png": 2, "2.png": 200}
        | csv("0.png,a,train\n1.png,b,Train\n2.png,a,test\n", "file_name,label,split"),
        ([1, 2], [0, 1], ("a", "b")),
        ([200], [0], ("a",)),
    ),
    "a column of another name": (
        {"0.png": 1, "1.png": 2, "2.png": 200}
        | csv("0.png,a,train\n1.png,b,train\n2.png,a,val\n", "file_name,label,subset"),
        ([1, 2], [0, 1], ("a", "b")),
        r"no split 'test': choose one of train, val",
    ),
    "a column of folds": (
        {"0.png": 1} | csv("0.png,a,fold1\n", "file_name,label,split"),
        r"no split 'train': choose one of fold1",
        r"no split 'test': choose one of fold1",
    ),
    "a column in capitals": (
        {"0.png": 1, "1.png": 2, "2.png": 200}
        | csv("0.png,a,train\n1.png,b,train\n2.png,a,test\n", "file_name,label,Split"),
        ([1, 2], [0, 1], ("a", "b")),
        ([200], [0], ("a",)),
    ),
    "a column that may be of splits": (
        {"0.png": 1, "1.png": 200} | csv("0.png,a,train\n1.png,a,test\n", "file_name,label,mode"),
        r"~metadata\.csv.* has 'mode', not read: the column of the splits is 'split', with train, validation or test",
        r"no split 'test': it is one set",
    ),
    "a column with a gap": (
        {"0.png": 1, "1.png": 2} | csv("0.png,a,train\n1.png,b,\n", "file_name,label,split"),
        r"has no 'split' for line 3 of set/metadata\.csv: give every row one",
        r"has no 'split' for line 3",
    ),
    "a set of something else": (
        {"0.png": 1} | csv("0.png,a,porcelain\n", "file_name,label,set"),
        ([1], [0], ("a",)),
        r"no split 'test': it is one set",
    ),
    "EDM's list above": (
        ROOT | {"dataset.json": '{"labels": [["train/0.png", 4], ["train/1.png", 5], ["test/2.png", 6]]}'},
        ([1, 2], [4, 5], None),
        ([200], [6], None),
    ),
}


@FORMS
@pytest.mark.parametrize("kind", TABLES)
def test_splits_of_tables(kind, form, caplog):
    files, train, test = TABLES[kind]
    data = write(form, files)
    check(data, in_form(train, form), caplog)
    check(data, in_form(test, form), caplog, split="test")


def parquet(name: str, values: list[int], **columns) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(value) for value in values]} | columns), name)


SHARDS = {
    "all of three": ([f"train-0000{i}-of-00003" for i in range(3)], ([1, 2, 3],)),
    "counted from one": ([f"train-{i}-of-3" for i in (1, 2, 3)], ([1, 2, 3],)),
    "one of three missing": (
        ["train-00000-of-00003", "train-00002-of-00003"],
        r"2 of 3 files train-\*-of-00003, number 1 is missing: fetch it",
    ),
    "the last missing": (["train-00000-of-00002"], r"1 of 2 files train-\*-of-00002, number 1 is missing"),
    "one of no split missing": (["data-00000-of-00003", "data-00001-of-00003"], r"number 2 is missing"),
    "of two uploads": (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], r"files of two sets"),
    "with hashes": (["train-00000-of-00002-ab12", "train-00001-of-00002-cd34"], ([1, 2],)),
    "twice": (["train-00000-of-00001-ab12", "train-00000-of-00001-cd34"], r"two files of one number"),
    "a gap": (["part-0", "part-1", "part-3"], r"~3 files numbered 0 to 3, without number 2"),
    "in the order of numbers": ([f"part-{i}" for i in range(12)], (list(range(1, 13)),)),
    "one of no split": (["train-0", "more"], r"~1 files of no split beside those of splits, left out \(more\.p"),
    "two configurations": (["a/train/0000", "b/train/0000"], r"one split in the folders 'a/train' and 'b/train'"),
    "partitions": (["year=2020/part-0", "year=2021/part-0"], ([1, 2],)),
    "parts": (["part1/0000", "part2/0000"], ([1, 2],)),
    "hidden": (["train-0", ".cache/train-1"], ([1],)),
    "dev": (["dev-0", "train-0"], ([2],)),
    "of two names": (["train-0", "training-0"], r"set has the files train-0\.parquet and training-0\.parquet, of one"),
    "a folder called as its files": (["train.parquet/part-0", "test.parquet/part-0"], ([1],)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARDS)
def test_shards(kind, caplog):
    names, expected = SHARDS[kind]
    for value, name in enumerate(names, start=1):
        parquet(f"set/{name}.parquet", [value])
    check("set", expected, caplog)


def test_a_part_that_is_named_outright_is_said(caplog):
    parquet("set/train-00001-of-00003.parquet", [7])
    check("set/train-00001-of-00003.parquet", ([7],), caplog)
    check("set/train-00001-of-00003.parquet", r"~is one of 3 files, and read alone: give its folder", caplog)
    write("tar", {"0.png": 1, "0.cls": "1"}, "a-0-of-2")
    check("a-0-of-2.tar", r"~a-0-of-2\.tar is one of 2 files, and read alone", caplog)


def test_a_column_of_splits_in_parquet(caplog):
    parquet("set.parquet", [1, 200, 2], label=["a", "a", "b"], split=["train", "test", "train"])
    check("set.parquet", ([1, 2], [0, 1], ("a", "b")), caplog)
    check("set.parquet", ([200], [0], ("a",)), caplog, split="test")
    parquet("set/0.parquet", [1, 200], split=["train", "validation"])
    check("set", ([200],), caplog, split="val")
    parquet("set.parquet", [1, 200], split=["train", None])
    check("set.parquet", r"has no 'split' for row 1 of set\.parquet", caplog)


@pytest.mark.parametrize("column", ["Split", "SPLIT", "splits", "dataset_split", "Subset", "data_split"])
def test_spellings_of_a_column_of_splits(column, caplog):
    parquet("set.parquet", [1, 200], **{column: ["train", "test"]})
    check("set.parquet", ([1],), caplog)
    check("set.parquet", ([200],), caplog, split="test")
    rows = f'{{"file_name": "0.png", "{column}": "train"}}\n{{"file_name": "1.png", "{column}": "test"}}'
    check(write("folder", {"0.png": 1, "1.png": 200, "metadata.jsonl": rows}), ([1],), caplog)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("is_train", [True, False], True),
        ("IsTest", [0, 1], True),
        ("train", ["yes", "no"], True),
        ("Usage", ["Training", "PublicTest"], True),
        ("mode", ["train", "val"], True),
        ("mode", ["RGB", "L"], False),
        ("train", [0.25, 0.5], False),
    ],
)
def test_columns_that_may_be_of_splits_are_said(column, values, said, caplog):
    parquet("set.parquet", [1, 200], **{column: values})
    found, warned = outcome("set.parquet", caplog)
    assert found[0] == [1, 200]
    assert (f"set.parquet has '{column}', not read: the column of the splits is 'split'" in warned) == said
    parquet("set.parquet", [1, 200], split=["train", "train"], **{column: values})
    assert outcome("set.parquet", caplog)[1] == ""  # the split is known


def test_pictures_beside_parquet_are_said(caplog):
    parquet("set/train-0.parquet", [1])
    write("folder", {"assets/logo.png": 7})
    check("set", r"~has parquet files, which are read, and 1 image files, which are not \(assets/logo\.png\)", caplog)


IDX = b"\0\0\x08\x03\0\0\0\x01\0\0\0\x08\0\0\0\x08"


def test_idx_files_of_splits_that_are_words_of_their_names(caplog):
    for split, level in (("train", 7), ("test", 200)):
        write("folder", {f"emnist-letters-{split}-images-idx3-ubyte": IDX + bytes([level]) * 64})
        write("folder", {f"emnist-letters-{split}-labels-idx1-ubyte": b"\0\0\x08\x01\0\0\0\x01\x05"})
    check("set", ([7], [5], None), caplog)
    check("set", ([200], [5], None), caplog, split="test")
    write("folder", {"emnist-digits-train-images-idx3-ubyte": IDX + bytes(64)})
    check("set", r"two files of images of the split 'train', emnist-digits-.* and emnist-letters-", caplog)


def test_a_split_that_is_a_link(caplog):
    write("folder", {"0.png": 1}, "elsewhere")
    write("folder", {"test/0.png": 200})
    os.symlink(Path("elsewhere").resolve(), "set/train")
    check("set", ([1], None, None), caplog)


def test_keras_keys_of_other_spellings(caplog):
    np.savez("set.npz", x_train=np.full((2, 8, 8), 7, np.uint8), x_dev=np.full((1, 8, 8), 200, np.uint8))
    assert len(load_images("set.npz")) == 2
    check("set.npz", ([200],), caplog, split="validation")
