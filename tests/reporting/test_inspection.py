"""The command `data inspect`: what it prints and writes, its page and its contact sheet."""

import json
import os

import numpy as np
import pytest
from sets_to_look_at import filthy_set, npz, numbered, write

from diffdistill.cli import main
from diffdistill.data.inspect import inspect_data
from diffdistill.reporting.contact_sheet import Samples
from diffdistill.reporting.findings import table
from diffdistill.reporting.inspection import sheet_of


@pytest.fixture
def filthy(tmp_path):
    return filthy_set(tmp_path)


def ask(capsys, *words):
    code = main(["data", "inspect", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_findings_are_printed_before_the_refusal(filthy, tmp_path, capsys):
    code, out, err = ask(capsys, filthy, "--out", tmp_path / "look")
    assert code == 3
    assert err.splitlines()[-1].startswith(f"diffdistill: error: {filthy} has both loose images")
    assert "cat/10.png is damaged" in out
    assert "training refuses this:" in out
    assert sorted(file.name for file in (tmp_path / "look").iterdir()) == ["contact_sheet.png", "index.html"]
    page = (tmp_path / "look" / "index.html").read_text("utf-8")
    assert "cat/10.png is damaged" in page
    assert "http" not in page
    assert page.count("<img ") == 1


def test_names_are_no_markup_of_the_page(tmp_path, capsys):
    data = write(tmp_path / "<b>set", numbered(2, "<script>x/") | {"<i>.png": b"x"})
    assert ask(capsys, data, "--out", tmp_path / "look")[0] == 3
    page = (tmp_path / "look" / "index.html").read_text("utf-8")
    assert not [tag for tag in ("<b>set", "<script", "<i>.") if tag in page]
    assert "&lt;script&gt;x" in page


def test_json_on_standard_output_is_all_of_it(tmp_path, capsys):
    data = write(tmp_path / "set", numbered(3, "cat/") | numbered(2, "dog/"))
    code, out, err = ask(capsys, data, "--json", "-")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(inspect_data(str(data))))
    assert "training sees 5 images of (3, 8, 8), 2 classes, no captions" in err


def test_nothing_is_overwritten(tmp_path, capsys):
    data = write(tmp_path / "set", numbered(3, "cat/") | numbered(2, "dog/"))
    code, out, err = ask(capsys, data, "--out", data)
    assert (code, out) == (2, "")
    assert "already exists and is not an empty folder" in err
    code, out, err = ask(capsys, data, "--out", f"{data}/look")
    assert (code, out) == (2, "")
    assert "lies in the set, of which it would become a part" in err
    write(tmp_path, {"mine.json": b"{}"})
    code, out, err = ask(capsys, data, "--json", tmp_path / "mine.json")
    assert (code, out) == (2, "")


def test_nowhere_is_a_sentence(tmp_path, capsys):
    code, out, err = ask(capsys, tmp_path / "nowhere")
    assert (code, out) == (3, "")
    assert "there is no file or folder" in err


# ---- the contact sheet


def test_a_row_a_class_without_what_cannot_be_read(filthy):
    samples = Samples()
    report = inspect_data(str(filthy), watch=samples)
    assert {label: len(row) for label, row in samples.kept.items()} == {0: 10, 1: 3, -1: 1}
    sheet = sheet_of(report, samples)
    assert (sheet.mode, sheet.width > sheet.height) == ("RGB", True)


def test_a_sheet_holds_pictures_as_training_sees_them(tmp_path):
    images = np.zeros((2, 40, 80), np.uint8)
    images[:, :, 10:70] = 200  # the middle square, and a margin for the resampling
    samples = Samples(image_size=28)
    report = inspect_data(
        str(npz(tmp_path / "set", images=images, labels=np.array([0, 1]))), image_size=28, watch=samples
    )
    (picture,) = samples.kept[0]
    assert picture.size == (56, 56)
    assert np.asarray(picture).min() == 200
    assert sheet_of(report, samples).width >= 56


def test_of_many_pictures_few_are_kept_from_all_over(tmp_path):
    count = 1000
    images = np.arange(count, dtype=np.uint16).astype(np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    samples = Samples()
    inspect_data(str(npz(tmp_path / "loose", images=images)), watch=samples)
    first = [int(np.asarray(picture)[0, 0]) for picture in samples.kept[0]]
    assert first == [i * count // 96 % 256 for i in range(96)]
    samples = Samples()
    report = inspect_data(str(npz(tmp_path / "many", images=images, labels=np.arange(count) // 4)), watch=samples)
    assert sorted(samples.kept) == list(range(20))
    assert "... and 231 more classes (--json has all)" in table(report)


def test_a_folder_whose_name_is_no_utf_8_has_its_page(tmp_path, capsys):
    """As from a disk of another system: its bytes are written as they are escaped."""
    for name in (b"caf\xe9", b"dog"):
        write(tmp_path / "set" / os.fsdecode(name), numbered(2))
    assert ask(capsys, tmp_path / "set", "--out", tmp_path / "look")[0] == 0
    assert "caf\\udce9" in (tmp_path / "look" / "index.html").read_text("utf-8")
