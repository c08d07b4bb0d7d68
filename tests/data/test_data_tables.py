"""Tables are read to the letter, or refused with their line or row; columns that nobody reads are said."""

import json
import os
from pathlib import Path

import pytest
from files_of_data import check, in_form, outcome, png, write

from diffdistill.data import load_images
from diffdistill.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FORMS = pytest.mark.parametrize("form", ["folder", "zip", "tar"])
CSV = {
    "quotes in quotes": ('file_name,text\n0.png,"a ""big"" car"\n', ([1], None, None, ('a "big" car',))),
    "a line break in quotes": ('file_name,text\r\n0.png,"a\r\nb"\r\n', ([1], None, None, ("a\nb",))),
    "old Mac's lines": ("file_name,text\r0.png,a\r", ([1], None, None, ("a",))),
    "an index of pandas": (",file_name,label\n0,0.png,b\n", ([1], [0], ("b",))),
    "semicolons": ("file_name;text\n0.png;a\n", r"line 1 of .* names no column 'file_name', only 'file_name;text'"),
    "semicolons, with their reason": (
        "file_name;text\n0.png;a\n",
        r"such as file_name,text, and put commas between the columns$",
    ),
    "Excel's sep": ("sep=;\nfile_name;text\n0.png;a\n", r"put commas between the columns$"),
    "tabs": ("file_name\ttext\n0.png\ta\n", r"line 1 of .* names no column 'file_name'"),
    "backslashes before quotes": ('file_name,text\n0.png,"a \\"big\\" car"\n', r"line 2 of .* is not CSV"),
    "a space before quotes": (
        'file_name,text,label\n0.png, "a car, red",b\n',
        r"line 2 of 'set/metadata\.csv' has a space before a quotation mark",
    ),
    "a space before quotes that hides a column": (
        'file_name,text,label\n0.png, "a car, red"\n',
        r"line 2 of 'set/metadata\.csv' has a space before a quotation mark",
    ),
    "a column twice": ("file_name,text,text\n0.png,a,b\n", r"line 1 of .* names the column 'text' twice"),
    "a column twice, but for its case": ("file_name,Text,text\n0.png,a,b\n", r"names the column 'text' twice"),
    "a line twice": (
        "file_name,text\n0.png,a\nx/1.png,b\n./0.png,a\n",
        r"line 4 of set/metadata\.csv lists 0\.png again, as line 2 does: it would count twice, take one out",
    ),
    "two texts of one image": ("file_name,text\n0.png,a\n0.png,b\n", ([1, 1], None, None, ("a", "b"))),
    "a field too few": ("file_name,label,text\n0.png,b\n", r"has no text for line 2 of set/metadata\.csv"),
    "a blank text": ("file_name,text\n0.png,\n", r"~1 blank texts, the first for line 2 of set/metadata\.csv"),
    "a file that is not there": (
        "file_name,text\n0.png,a\n\n9.png,b\n",
        r"there is no image set/9\.png \(line 4 of set/metadata\.csv\): add it or take it off",
    ),
    "Windows' paths": ("file_name,text\nx\\1.png,a\n", ([2], None, None, ("a",))),
    "quotes left open": ('file_name,text\n0.png,a\n0.png,"b\n', r"line 3 of .* is not CSV"),
    "captions elsewhere": (
        "file_name,caption\n0.png,a\n",
        r"~has 'caption', not read: the column of the texts is 'text'",
    ),
    "classes elsewhere": ("file_name,Category\n0.png,a\n", r"~has 'category', not read: the column of the labels is"),
    "folders of classes, no labels": (
        "file_name,text\nx/1.png,a\ny/2.png,b\n",
        r"~has no column 'label', and the folders of its images \(x, y\) are not read as classes",
    ),
    "some images only": (
        "file_name,text\n0.png,a\n",
        r"~set has 2 images that metadata\.csv does not list, left out \(x/1",
    ),
    "nothing but a header": ("file_name,text\n", r"set is a folder without images"),
}


@FORMS
@pytest.mark.parametrize("kind", CSV)
def test_csv(kind, form, caplog):
    text, expected = CSV[kind]
    data = write(form, {"0.png": 1, "x/1.png": 2, "y/2.png": 3, "metadata.csv": text})
    check(data, in_form(expected, form), caplog)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_tables_with_a_byte_order_mark(encoding, caplog):
    write("folder", {"0.png": 1, "metadata.csv": "file_name,text\r\n0.png,größer\r\n".encode(encoding)})
    check("set", ([1], None, None, ("größer",)), caplog)


JSON = {
    "one list": ('[{"file_name": "0.png"}]', r"line 1 of 'set/metadata\.jsonl' is no JSON object"),
    "a pretty object": ('{\n"file_name": "0.png"\n}', r"line 1 of 'set/metadata\.jsonl' is not JSON"),
    "deep": ('{"file_name": "0.png"}\n' + "[" * 9999, r"line 2 of 'set/metadata\.jsonl' is not JSON \(it is nested"),
    "python's quotes": ("{'file_name': '0.png'}", r"line 1 of 'set/metadata\.jsonl' is not JSON"),
    "a list of captions": ('{"file_name": "0.png", "text": ["a", "b"]}', r"has the text \['a', 'b'\] for line 1 of"),
    "a number for a caption": ('{"file_name": "0.png", "text": 7}', r"the text 7 for line 1 of set/metadata\.jsonl"),
    "capital keys": (
        '{"file_name": "0.png", "Label": 1}',
        r"~has 'Label', not read: the column of the labels is 'label'",
    ),
    "a prompt": (
        '{"file_name": "0.png", "prompt": "a"}',
        r"~has 'prompt', not read: the column of the texts is 'text'",
    ),
    "a key twice": (
        '{"file_name": "0.png"}\n{"file_name": "x/1.png", "label": 1, "label": 2}',
        r"line 2 of 'set/metadata\.jsonl' has the key 'label' twice: which counts\? leave one",
    ),
    "a key twice, deeper": (
        '{"file_name": "0.png", "more": {"a": 1, "a": 1}}',
        r"line 1 of 'set/metadata\.jsonl' has the key 'a' twice",
    ),
    "separators inside": (
        '{"file_name": "0.png", "text": "a\u2028b\u0085c"}',
        ([1], None, None, ("a\u2028b\u0085c",)),
    ),
    "a split": (
        '{"file_name": "0.png", "split": "train"}\n{"file_name": "x/1.png", "split": "test"}',
        ([1], None, None, None),
    ),
}


@FORMS
@pytest.mark.parametrize("kind", JSON)
def test_json_lines(kind, form, caplog):
    text, expected = JSON[kind]
    data = write(form, {"0.png": 1, "x/1.png": 2, "metadata.jsonl": text})
    check(data, in_form(expected, form), caplog)


def test_two_tables(caplog):
    write("folder", {"0.png": 1, "metadata.csv": "file_name\n0.png\n", "metadata.jsonl": '{"file_name": "0.png"}'})
    check("set", r"has both metadata\.jsonl and metadata\.csv: leave the one that counts", caplog)


@FORMS
def test_lists_in_class_folders_are_not_passed_over(form, caplog):
    data = write(form, {"a/0.png": 1, "b/1.png": 2, "b/metadata.jsonl": '{"file_name": "1.png", "text": "x"}'})
    check(data, r"has the list b/metadata\.jsonl, inside of one of its folders: move it to the top", caplog)


@pytest.mark.parametrize("name", ["labels.csv", "captions.json", "train.csv", "list_attr_celeba.txt", "metadata.json"])
def test_lists_of_other_names_are_said(name, caplog):
    check(
        write("folder", {"0.png": 1, name: "x"}), rf"~set has {name}, which is not read: lists of images are", caplog
    )


@pytest.mark.parametrize("name", ["notes.txt", "latest.json", "README.md"])
def test_other_files_are_not(name, caplog):
    assert outcome(write("folder", {"0.png": 1, name: "x"}), caplog)[1] == ""


BESIDE = {
    "txt": ({"0.png": 1, "0.txt": " a cat\n", "1.png": 2, "1.txt": "a dog"}, ([1, 2], None, None, ("a cat", "a dog"))),
    "caption": ({"0.png": 1, "0.caption": "a"}, ([1], None, None, ("a",))),
    "in class folders": (
        {"10_sks dog/0.png": 1, "10_sks dog/0.txt": "a", "1_dog/0.png": 2, "1_dog/0.txt": "b"},
        ([2, 1], [0, 1], ("1_dog", "10_sks dog"), ("b", "a")),
    ),
    "one missing": (
        {"0.png": 1, "0.txt": "a", "1.png": 2},
        r"captions such as 0\.txt for 1 of 2 images and none for .*1\.png: give every image one",
    ),
    "two of one": (
        {"0.png": 1, "0.txt": "a", "0.caption": "b"},
        r"captions 0\.(txt|caption) and 0\.(txt|caption): leave",
    ),
    "boxes": (
        {"0.png": 1, "0.txt": "0 0.5 0.5 0.2 0.2\n1 .1 .1 .1 .1\n"},
        r"~has text files of numbers beside its images, which are not read",
    ),
    "in another encoding": ({"0.png": 1, "0.txt": "größer".encode("latin-1")}, r"line 1 of '.*0\.txt.*' is not UTF-8"),
    "UTF-16": ({"0.png": 1, "0.txt": "größer".encode("utf-16")}, ([1], None, None, ("größer",))),
}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("kind", BESIDE)
def test_captions_beside_images(form, kind, caplog):
    files, expected = BESIDE[kind]
    if (form, kind) == ("tar", "boxes"):
        pytest.skip("a sample of a tar says that its text is one")
    if (form, kind) == ("tar", "one missing"):
        expected = r"set\.tar has no text for 1 in set\.tar: give every image one"
    if (form, kind) == ("tar", "two of one"):
        expected = ([1], None, None, ("a",))
    check(write(form, files), expected, caplog)


def info(names: object, **around: object) -> dict:
    features = {"label": {"names": names, "_type": "ClassLabel"} | around}
    return {"huggingface": json.dumps({"info": {"features": features}})}


TWO = [0, 1]
PARQUET = {
    "names by number": (TWO, info({"0": "dog", "1": "cat"}), ([1, 2], [0, 1], ("dog", "cat"))),
    "names of an old version": (
        TWO,
        info(["dog", "cat"], num_classes=2, names_file=None, id=None, dtype="int64"),
        ([1, 2], [0, 1], ("dog", "cat")),
    ),
    "names of a card": (
        TWO,
        {
            "huggingface": json.dumps(
                {"info": {"features": {"label": {"class_label": {"names": {"0": "a", "1": "b"}}}}}}
            )
        },
        ([1, 2], [0, 1], ("a", "b")),
    ),
    "no names": (TWO, info(None), ([1, 2], [0, 1], None)),
    "two of one name": (TWO, info(["cat", "cat"]), r"set\.parquet has two classes called 'cat': which label is which"),
    "more labels than names": (
        [0, 5],
        info(["a", "b"]),
        r"has the label 5 for row 1 of set\.parquet: .* one of 2 classes",
    ),
    "an unknown label": ([-1, 0], info(["a", "b"]), r"has the label -1 for row 0 of set\.parquet"),
    "names of numbers": (["7", "3"], info(["3", "7"]), ([1, 2], [1, 0], ("3", "7"))),
    "rubbish": (TWO, {"huggingface": "{"}, ([1, 2], [0, 1], None)),
    "a list for an object": (TWO, {"huggingface": "[]"}, ([1, 2], [0, 1], None)),
    "lists of labels": ([[0], [1]], {}, r"has the label \[0\] for row 0 of set\.parquet"),
    "fractions": ([0.0, 1.0], {}, r"has the label 0\.0 for row 0 of set\.parquet"),
    "missing": ([0, None], {}, r"has no label for row 1 of set\.parquet"),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_labels_of_parquet(kind, caplog):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels, metadata, expected = PARQUET[kind]
    table = pa.table({"image": [png(1), png(2)], "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata), "set.parquet")
    check("set.parquet", expected, caplog)


def test_columns_of_parquet(caplog):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def wrote(**columns):
        pq.write_table(pa.table(columns), "set.parquet")
        return "set.parquet"

    images = [png(1), png(2)]
    category = pa.array(["dog", "cat"]).dictionary_encode()
    check(wrote(image=pa.array(images, pa.large_binary()), label=category), ([1, 2], [1, 0], ("cat", "dog")), caplog)
    check(wrote(image=pa.array(images).dictionary_encode(), label=TWO), ([1, 2], [0, 1], None), caplog)
    check(wrote(image=[list(png(1))]), r"no image bytes in row 0: it holds a list of numbers; encode", caplog)
    check(wrote(image=["aGVsbG8="]), r"no image bytes in row 0: it holds a text; keep the bytes", caplog)
    check(wrote(image=[png(1), None]), r"set\.parquet has no image bytes in row 1", caplog)
    check(wrote(img=images, fine_label=TWO, coarse_label=TWO), r"~'fine_label' and 'coarse_label', not read", caplog)
    check(wrote(image=images, caption=["a", "b"]), r"~has 'caption', not read: the column of the texts", caplog)
    check(wrote(image=images, text=[["a"], ["b"]]), r"has the text \['a'\] for row 0 of set\.parquet", caplog)
    check(wrote(image=images, text=["a", None]), r"has no text for row 1 of set\.parquet", caplog)


def test_files_of_parquet_that_do_not_agree(caplog):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path("set").mkdir()
    for i, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        table = pa.table({"image": [png(i)], "label": [0]}).replace_schema_metadata(info(names))
        pq.write_table(table, f"set/{i}.parquet")
    check("set", r"different names of classes, 0\.parquet and 1\.parquet: one label would mean two things", caplog)
    pq.write_table(pa.table({"label": [1], "image": [png(7)]}), "set/1.parquet")
    pq.write_table(pa.table({"image": [png(5)], "label": [0]}), "set/0.parquet")
    check("set", ([5, 7], [0, 1], None), caplog)  # the order of columns means nothing
    pq.write_table(pa.table({"image": [b""], "label": [None]}), "set/2.parquet")
    check("set", r"has no label for row 0 of set/2\.parquet", caplog)


def test_parquet_behind_links(caplog):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path("blobs").mkdir()
    pq.write_table(pa.table({"image": [png(5)]}), "blobs/ab12")
    Path("set").mkdir()
    os.symlink(Path("blobs/ab12").resolve(), "set/train-00000-of-00001.parquet")
    assert len(load_images("set")) == 1


def test_captions_may_be_in_another_column(caplog, monkeypatch, tmp_path):
    """LAION's tables call it TEXT, img2dataset's caption."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = {"TEXT": ["a", "b"], "text": ["x", "y"]}
    pq.write_table(pa.table({"image": [png(1), png(2)], **texts}), "set.parquet")
    rows = [{"file_name": f"{i}.png"} | {key: value[i] for key, value in texts.items()} for i in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write("folder", {"0.png": 1, "1.png": 2, "metadata.jsonl": lines})
    records = {f"{i}.json": json.dumps({"TEXT": "ab"[i], "text": "xy"[i]}) for i in range(2)}
    write("tar", {"0.png": 1, "1.png": 2, **records})
    for data in ("set.parquet", "set", "set.tar"):
        caplog.clear()
        assert load_images(data, captions="TEXT").texts == ("a", "b")
        assert load_images(data).texts == ("x", "y")
        assert load_images(data, keep="disk", captions="TEXT").texts == ("a", "b")
        assert load_images(data, keep="disk").texts == ("x", "y")
        assert "not read" not in caplog.text
        if data != "set.tar":
            with pytest.raises(DataError, match=r"no column 'words', which data.caption_column names, only .*TEXT"):
                load_images(data, captions="words")
    with pytest.raises(DataError, match=r"has no table, and data.caption_column=TEXT is of tables"):
        load_images("builtin:fashion_mnist", split="test", captions="TEXT")
    pq.write_table(pa.table({"URL": ["http://a"], "TEXT": ["a"]}), "list.parquet")
    with pytest.raises(DataError, match=r"has addresses of images and no column 'image': fetch them first"):
        load_images("list.parquet")
