"""`data inspect`: filthy sets are looked at to their end, and what is said of training is what training says."""

from pathlib import Path

import numpy as np
import pytest
from sets_to_look_at import (
    IDX,
    PICTURES,
    csv_with_a_comma,
    filthy_set,
    idx,
    lines,
    npz,
    numbered,
    parquet,
    pixels,
    png,
    row,
    write,
    zip_cut_at_its_beginning,
    zip_with_a_damaged_member,
    zipped,
)

from diffdistill.data import load_images
from diffdistill.data.inspect import FEW, inspect_data
from diffdistill.errors import DataError
from diffdistill.evaluation.metrics import metric, metrics
from diffdistill.reporting.findings import table


@pytest.fixture
def filthy(tmp_path):
    return filthy_set(tmp_path)


def reasons(report):
    return [fault["reason"] for fault in report["training"]["refused"]]


def test_every_kind_of_dirt_is_told(filthy):
    report = inspect_data(str(filthy))
    assert (report["format"], report["images"], report["readable"]) == ("images", 18, 14)
    assert report["unreadable"]["count"] == 4
    bad = [Path(file["name"]).name for file in report["unreadable"]["files"]]
    assert bad == ["10.png", "11.png", "12.jpg", "nowhere.png"]
    assert all(file["name"] in file["reason"] for file in report["unreadable"]["files"])
    assert report["sizes"] == {
        "smallest": [8, 8], "commonest": [8, 8], "largest": [12, 8], "distinct": 2, "of_commonest": 13, "oblong": 1,
    }  # fmt: skip
    assert report["modes"] == {"RGB": 8, "L": 2, "RGBA": 1, "I;16": 1, "P": 1, "CMYK": 1}
    assert report["file_formats"] == {"PNG": 10, "JPEG": 2, "BMP": 1, "GIF": 1}
    traits = dict.fromkeys(("transparent", "sixteen_bit", "animated", "turned", "gray_as_colour", "blank"), 1)
    assert report["traits"] == traits
    assert report["pixels"] == {"lowest": 0, "highest": 255}


def test_classes_duplicates_and_what_is_left_out_are_told(filthy):
    report = inspect_data(str(filthy))
    classes = report["classes"]
    rows = [(row["label"], row["name"], row["images"], row["unreadable"]) for row in classes["rows"]]
    assert rows == [(0, "cat", 14, 4), (1, "dog", 3, 0), (2, "empty", 0, 0)]
    assert (classes["count"], classes["without_images"], classes["unlabelled"]) == (3, 1, 1)
    assert classes["imbalance"] == pytest.approx(14 / 3)
    names = [[str(Path(name).relative_to(filthy)) for name in group] for group in report["duplicates"]["files"]]
    assert names == [["cat/0.png", "cat/1.bmp", "dog/0.png"], ["cat/2.png", "dog/1.png"]]
    assert (report["duplicates"]["surplus"], report["duplicates"]["of_several_classes"]) == (3, 2)
    assert report["left_out"] == {
        "hidden": {"count": 2, "files": [".hidden.png", "__MACOSX/._0.png"]},
        "link": {"count": 1, "files": ["cat/linked/"]},
        "device": {"count": 1, "files": ["cat/pipe.png"]},
        "other_picture": {"count": 1, "files": ["dog/phone.heic"]},
        "other": {"count": 1, "files": ["notes.txt"]},
    }
    said = reasons(report)
    assert [word in text for word, text in zip(("loose", "empty", "sizes", "damaged"), said, strict=True)] == [
        True
    ] * 4


# ---- what training sees and says


ONE_LABEL = b'{"labels": [["0.png", 1]]}'
FAULTY = {
    "no picture": lambda folder: write(folder, {"notes.txt": b"x"}),
    "a damaged picture": lambda folder: write(folder, numbered(2) | {"1.png": b"x"}),
    "two sizes": lambda folder: write(folder, numbered(3) | {"1.png": png(pixels(9, 8, 3))}),
    "damaged before two sizes": lambda folder: write(folder, numbered(3) | {"1.png": b"", "2.png": png(pixels(9, 8))}),
    "two sizes before damaged": lambda folder: write(folder, numbered(3) | {"1.png": png(pixels(9, 8)), "2.png": b""}),
    "loose and classes": lambda folder: write(folder, numbered(2) | numbered(2, "cat/")),
    "a split among classes": lambda folder: write(folder, numbered(2, "cat/") | numbered(2, "train/dog/")),
    "one number twice": lambda folder: write(folder, numbered(2, "1/") | numbered(2, "01/")),
    "a number too high": lambda folder: write(folder, numbered(2, "1/") | numbered(2, "20240101/")),
    "no train split": lambda folder: write(folder, numbered(2, "test/") | numbered(2, "val/")),
    "a line that is no JSON": lambda folder: lines(folder, row(0), "nonsense", row(2)),
    "a line that is a list": lambda folder: lines(folder, row(0), "[]", row(2)),
    "a line without a file": lambda folder: lines(folder, row(0, text="a"), '{"text": "b"}', row(2, text="c")),
    "a missing text": lambda folder: lines(folder, row(0, text="a"), row(1), row(2)),
    "a halved text": lambda folder: lines(folder, row(0, text="a"), row(1, text="\ud800"), row(2, text="c")),
    "a missing file": lambda folder: lines(folder, row(0), row(7), row(2)),
    "a missing label": lambda folder: lines(folder, row(0, label="cat"), row(1), row(2, label="dog")),
    "a label below 0": lambda folder: lines(folder, row(0, label=-1), row(1, label=0), row(2, label=1)),
    "a path that leads out": lambda folder: lines(folder, '{"file_name": "../0.png"}'),
    "a comma in a CSV": csv_with_a_comma,
    "no label in dataset.json": lambda folder: write(folder, numbered(2) | {"dataset.json": ONE_LABEL}),
    "a broken dataset.json": lambda folder: write(folder, numbered(2) | {"dataset.json": b"{"}),
    "zip: loose and classes": lambda folder: zipped(folder, numbered(2) | numbered(2, "cat/")),
    "zip: a damaged member": zip_with_a_damaged_member,
    "zip: no label": lambda folder: zipped(folder, numbered(2) | {"dataset.json": ONE_LABEL}),
    "zip: cut at its beginning": zip_cut_at_its_beginning,
    "idx: labels of three bytes": lambda folder: write(folder, IDX | {"train-labels-idx1-ubyte": b"\0\0\x08"}),
    "zip: no zip": lambda folder: write(folder, {"a.zip": b"PK"}) / "a.zip",
    "npz: too few labels": lambda folder: npz(folder, images=pixels(3, 8, 8), labels=np.arange(2)),
    "npz: floats": lambda folder: npz(folder, images=np.zeros((3, 8, 8))),
    "idx: too few labels": lambda folder: write(folder, IDX),
    "parquet: no bytes": lambda folder: parquet(folder, image=[PICTURES[0], None, PICTURES[2]]),
    "parquet: a missing label": lambda folder: parquet(folder, image=PICTURES, label=["a", None, "b"]),
    "parquet: a missing text": lambda folder: parquet(folder, image=PICTURES, text=["a", None, "b"]),
    "parquet: no image column": lambda folder: parquet(folder, picture=PICTURES),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_the_first_fault_is_the_sentence_of_training(fault, tmp_path):
    data = str(FAULTY[fault](tmp_path / "set"))
    report = inspect_data(data)
    with pytest.raises(DataError) as error:
        load_images(data)
    assert reasons(report)[0] == str(error.value)
    assert table(report)
    assert not report["training"]["reads"]


SEEN = ("a damaged picture", "two sizes", "loose and classes", "a split among classes", "a missing text",
        "a missing file", "a missing label", "a label below 0", "no label in dataset.json", "zip: loose and classes",
        "zip: a damaged member", "zip: no label", "npz: too few labels", "idx: too few labels", "parquet: no bytes",
        "parquet: a missing label", "parquet: a missing text", "a broken dataset.json")  # fmt: skip


@pytest.mark.parametrize("fault", SEEN)
def test_pictures_are_counted_beyond_a_fault(fault, tmp_path):
    report = inspect_data(str(FAULTY[fault](tmp_path / "set")))
    assert report["images"] == report["readable"] + report["unreadable"]["count"] >= 2
    assert report["readable"] >= report["images"] - 1


def test_a_member_that_would_begin_before_its_zip_is_damaged(tmp_path):
    report = inspect_data(str(zip_cut_at_its_beginning(tmp_path / "set")))
    assert "is damaged" in reasons(report)[0]


def test_a_missing_label_among_words_is_one_image_without(tmp_path):
    report = inspect_data(str(FAULTY["a missing label"](tmp_path / "set")))
    assert [(row["name"], row["images"]) for row in report["classes"]["rows"]] == [("cat", 1), ("dog", 1)]
    assert report["classes"]["unlabelled"] == 1
    assert "has no label for line 2 of" in reasons(report)[0]


def test_lines_of_one_fault_are_one_reason(tmp_path):
    report = inspect_data(str(lines(tmp_path / "set", row(0), "x", "y", "z")))
    assert report["training"]["refused"] == [{"reason": reasons(report)[0], "count": 3}]
    assert report["left_out"]["not_listed"] == {"count": 2, "files": ["1.png", "2.png"]}


SOUND = {
    "classes": lambda folder: write(folder, numbered(3, "cat/") | numbered(2, "dog/")),
    "numbers": lambda folder: write(folder, numbered(3, "0/") | numbered(2, "4/")),
    "loose": lambda folder: write(folder, numbered(3) | {"3.png": png(pixels(8, 8))}),
    "captions": lambda folder: lines(folder, *(row(i, text=f"text {i}") for i in range(3))),
    "zip": lambda folder: zipped(folder, numbered(3, "cat/") | numbered(2, "dog/")),
    "npz": lambda folder: npz(folder, images=pixels(3, 8, 12, 3), labels=np.array([0, 1, 1])),
    "npz of splits": lambda folder: npz(folder, x_train=pixels(4, 8, 8), x_test=pixels(2, 8, 8)),
    "idx": lambda folder: write(folder, IDX | {"train-labels-idx1-ubyte": idx(np.arange(3, dtype=np.uint8))}),
    "parquet": lambda folder: parquet(folder, image=PICTURES, label=["a", "b", "a"], text=["x", "y", "x"]),
    "builtin": lambda _: "builtin:emoji",
}


@pytest.mark.parametrize("kind", SOUND)
def test_training_sees_what_is_said(kind, tmp_path):
    data = str(SOUND[kind](tmp_path / "set"))
    report, loaded = inspect_data(data), load_images(data)
    training = report["training"]
    assert training["reads"]
    assert (training["images"], training["shape"]) == (len(loaded), list(loaded.images.shape[1:]))
    assert (training["classes"], training["captions"]) == (loaded.num_classes, loaded.texts is not None)
    assert report["pixels"] == {"lowest": int(loaded.images.min()), "highest": int(loaded.images.max())}
    assert report["left_out"] == {}


@pytest.mark.parametrize("kind", ["two sizes", "npz: floats"])
def test_an_image_size_is_what_training_would_have(kind, tmp_path):
    data = str(FAULTY[kind](tmp_path / "set"))
    report = inspect_data(data, image_size=4)
    assert report["training"]["reads"] == (kind == "two sizes")
    assert report["training"]["shape"] == (
        list(load_images(data, image_size=4).images.shape[1:]) if report["training"]["reads"] else None
    )


def test_a_limit_above_the_number_is_refused_and_looked_past(tmp_path):
    data = str(SOUND["loose"](tmp_path / "set"))
    assert "4 images, but 9 were asked for" in reasons(inspect_data(data, limit=9))[0]
    report = inspect_data(data, limit=2)
    assert (report["images"], report["left_out"], report["training"]["reads"]) == (2, {}, True)


def test_a_limit_that_leaves_classes_out_is_noted(tmp_path):
    data = str(write(tmp_path / "set", numbered(4, "a/") | numbered(4, "b/") | numbered(4, "c/")))
    report = inspect_data(data, limit=4)
    assert [row["images"] for row in report["classes"]["rows"]] == [4, 0, 0]
    assert "2 classes of 3 without an image: what is drawn of it is untrained" in report["training"]["notes"]


# ---- splits


def test_test_pictures_in_training_are_found(tmp_path):
    train, test = numbered(4, "train/"), numbered(3, "test/")
    test["test/1.png"] = train["train/2.png"]
    report = inspect_data(str(write(tmp_path / "set", train | test)))
    taken = {row["name"]: (row["images"], row["taken"], row["in_taken"]) for row in report["splits"]}
    assert taken == {"train": (4, True, 0), "test": (3, False, 1)}
    (pair,) = next(row["pairs"] for row in report["splits"] if row["name"] == "test")
    assert [Path(name).name for name in pair] == ["2.png", "1.png"]
    assert report["left_out"] == {}
    assert "1 picture of 'test' also in 'train'" in report["training"]["notes"][0]


@pytest.mark.parametrize("names", [("val", "validation"), ("Test", "test", "testing"), ("dev", "val2017")])
def test_every_spelling_of_a_split_is_counted(names, tmp_path):
    files = numbered(4, "train/")
    for count, name in enumerate(names, start=1):
        files |= numbered(count, f"{name}/")
    report = inspect_data(str(write(tmp_path / "set", files)))
    rows = {row["name"]: row for row in report["splits"]}
    assert {name: row["images"] for name, row in rows.items()} == {
        "train": 4, **{name: count for count, name in enumerate(names, start=1)},
    }  # fmt: skip
    assert report["left_out"] == {}
    assert report["training"]["reads"]
    with pytest.raises(DataError, match=f"has both {names[0]!r} and {names[1]!r}, of the split"):
        load_images(str(tmp_path / "set"), split="validation" if "test" not in names else "test")


def test_folders_that_differ_by_the_case_alone_are_refused(tmp_path):
    report = inspect_data(str(write(tmp_path / "set", numbered(2, "train/") | numbered(1, "Train/"))))
    assert "both 'Train' and 'train', of the split 'train'" in reasons(report)[0]
    assert {row["name"]: row["images"] for row in report["splits"]} == {"Train": 1, "train": 2}
    assert report["left_out"] == {}


def test_the_other_split_can_be_taken(tmp_path):
    data = str(write(tmp_path / "set", numbered(4, "train/") | numbered(3, "test/")))
    report = inspect_data(data, split="test")
    assert (report["split"], report["images"], report["training"]["reads"]) == ("test", 3, True)
    report = inspect_data(data, split="validation")
    assert reasons(report) == [f"{data} has no split 'validation': choose one of test, train"]
    assert [(row["name"], row["images"]) for row in report["splits"]] == [("test", 3), ("train", 4)]
    assert report["left_out"] == {}


def test_of_splits_within_splits_the_outer_ones_count(tmp_path):
    labels = {"train/train-labels-idx1-ubyte": idx(np.arange(3, dtype=np.uint8))}
    inner = {f"train/{name}": data for name, data in IDX.items()} | labels
    inner["train/t10k-images-idx3-ubyte"] = idx(pixels(2, 8, 8))
    report = inspect_data(str(write(tmp_path / "set", inner | numbered(2, "test/"))))
    assert [(row["name"], row["images"], row["taken"]) for row in report["splits"]] == [
        ("test", 2, False),
        ("train", 3, True),
    ]


def test_parquet_of_no_split_beside_splits_is_left_out(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("train-0", "test-0", "more"):
        parquet(tmp_path / "set" / name, image=PICTURES)
    assert inspect_data(str(tmp_path / "set"))["left_out"] == {"no_split": {"count": 1, "files": ["more.parquet"]}}


# ---- notes


def test_black_blank_oblong_and_gray_pictures_are_noted(tmp_path):
    dark = [pixels(8, 12) // 13 for _ in range(3)]
    report = inspect_data(str(npz(tmp_path / "dark", images=np.stack([*dark, np.zeros_like(dark[0])]))))
    said = " / ".join(report["training"]["notes"])
    assert "12x8 is not square" in said
    assert "no value is above 19 of 255" in said
    assert "1 picture of one colour" in said
    gray = np.repeat(pixels(2, 8, 8, 1), 3, axis=-1)
    note, few = inspect_data(str(npz(tmp_path / "gray", images=gray)))["training"]["notes"]
    assert "gray and saved as colour" in note
    assert few.startswith("2 images, and to compare with fid needs 2, kid 4, prdc 6: a run that measures more is ref")


def test_what_inspect_says_of_few_images_is_what_the_metrics_need():
    assert max(row.least for row in metrics().values() if row.probe is None) == FEW
    assert [metric(name).least for name in ("fid", "kid", "prdc")] == [2, 4, FEW]


def test_captions_are_measured(tmp_path):
    texts = ["a cat", "  ", "a cat", "a longer one", ""]
    rows = [row(i, text=text) for i, text in enumerate(texts)]
    data = write(tmp_path / "set", numbered(5) | {"metadata.jsonl": "\n".join(rows).encode()})
    report = inspect_data(str(data))
    assert report["captions"] == {
        "present": 3, "empty": 2, "shortest": 5, "median": 5, "longest": 12, "repeated": 1,
        "commonest": {"text": "a cat", "count": 2}, "first": "a cat",
    }  # fmt: skip
    assert "2 images without a caption" in report["training"]["notes"][0]


# ---- the command
