"""`diffdistill calibrate` and what `sample` makes of its file, on a tiny teacher."""

import json

import numpy as np
import pytest
from PIL import Image

from diffdistill.cli import front as cli
from diffdistill.errors import CheckpointError
from diffdistill.parts.exposure_bias.corrections import BOTH, SCALE, SHIFT, read_calibration
from tests.worlds.tiny import tiny_teacher


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher of 8 x 8, sixty images of that size, and the words that calibrate the one on the other."""
    folder = tmp_path_factory.mktemp("calibration")
    tiny_teacher().save_pretrained(folder / "teacher", role="teacher")
    draw = np.random.default_rng(0)
    for label in range(3):
        (folder / "data" / str(label)).mkdir(parents=True)
        for i in range(60):
            pixels = (draw.normal(128, 40, (8, 8)) + 10 * label).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / str(label) / f"{i}.png")
    return folder


def words(place, out, *more):
    given = ("calibrate", place / "teacher", "--data", place / "data", "--out", out)
    small = ("--num-images", "16", "--check-seeds", "2", "--metric", "fid", "--batch-size", "24", "--device", "cpu")
    return [str(word) for word in (*given, *small, *more)]


@pytest.fixture(scope="module")
def calibrated(place):
    out = place / "calibration.json"
    assert cli.main(words(place, out, "--sampler", "euler", "--steps", "2,4")) == 0
    return out


def test_the_file_has_every_fit_with_its_evidence(calibrated):
    held = read_calibration(calibrated)
    assert [(e.sampler, e.steps) for e in held.entries] == [("euler", 2), ("euler", 4)]
    for entry in held.entries:
        exposure = entry.report["exposure"]["plain"]
        assert len(exposure["levels"]) == len(exposure["log_ratio"]) == entry.steps + 1
        assert entry.report["variance_fit"]["runs"] <= 5
        qualities = [trial["quality"] for trial in entry.report["trials"]]
        chosen = [t for t in entry.report["trials"] if (t["b"], t["window"]) == (entry.fits[SCALE]["b"], 0)]
        assert chosen[0]["quality"] <= qualities[0]
        assert len(entry.report["check"][BOTH]["values"]) == 2
    assert calibrated.with_suffix(".png").stat().st_size > 1000


def test_a_finished_file_is_kept_and_a_longer_one_continued(place, calibrated, tmp_path, capsys):
    before = calibrated.read_text()
    assert cli.main(words(place, calibrated, "--sampler", "euler", "--steps", "2")) == 0
    assert calibrated.read_text() == before
    copy = tmp_path / "c.json"
    copy.write_text(before)
    assert cli.main(words(place, copy, "--sampler", "vp_ddim", "--steps", "1")) == 0
    assert [e.steps for e in read_calibration(copy).entries] == [2, 4, 1]
    assert "vp_ddim 1: ln(variance ratio)" in capsys.readouterr().out


def test_other_settings_do_not_overwrite(place, calibrated, capsys):
    before = calibrated.read_text()
    assert cli.main(words(place, calibrated, "--seed", "5")) == 2
    assert "exists and holds something else" in capsys.readouterr().err
    assert calibrated.read_text() == before


@pytest.mark.parametrize("steps", [2, 8])
def test_auto_is_what_the_file_says(place, calibrated, tmp_path, steps):
    base = [
        "sample",
        place / "teacher",
        "--num-images",
        "3",
        "--sampler",
        "euler",
        "--steps",
        steps,
        "--device",
        "cpu",
    ]
    auto = [*base, "--epsilon-scaling", "auto", "--time-shift-sampler", "auto", "--calibration", calibrated]
    assert cli.main([str(word) for word in (*auto, "--out", tmp_path / "auto")]) == 0
    fit = read_calibration(calibrated).lookup("euler", steps, BOTH)
    record = json.loads((tmp_path / "auto" / "samples.json").read_text())["corrections"]
    if (fit["b"], fit["window"]) == (1, 0):
        assert record is None
        return
    assert (record["b"], record["window"]) == (fit["b"], fit["window"])
    assert record["source"] == str(calibrated)


def test_the_file_is_found_in_the_folder_of_the_model(place, calibrated, tmp_path):
    held = json.loads(calibrated.read_text())
    held["entries"][0]["fits"][SCALE]["b"] = 1.05
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match=r"is not a calibration that can be read .*its own_sha256"):
        read_calibration(changed)
    del held["own_sha256"]  # the change is meant
    (place / "teacher" / "calibration.json").write_text(json.dumps(held))
    words = ["sample", place / "teacher", "--num-images", "2", "--sampler", "euler", "--steps", "2", "--device", "cpu"]
    for name, value in (("auto", "auto"), ("given", "1.05")):
        assert cli.main([str(w) for w in (*words, "--epsilon-scaling", value, "--out", tmp_path / name)]) == 0
    one, two = ((tmp_path / name / "00001.png").read_bytes() for name in ("auto", "given"))
    assert one == two
    (place / "teacher" / "calibration.json").unlink()


def test_a_foreign_picture_where_the_plot_would_be_is_left_alone(place, tmp_path, capsys):
    (tmp_path / "c.png").write_bytes(b"precious")
    assert cli.main(words(place, tmp_path / "c.json", "--sampler", "euler", "--steps", "2")) == 2
    assert f"the plot of --out, {tmp_path / 'c.png'} exists and holds something else" in capsys.readouterr().err
    assert (tmp_path / "c.png").read_bytes() == b"precious"
    assert not (tmp_path / "c.json").exists()
    assert cli.main(words(place, tmp_path / "d.png", "--sampler", "euler", "--steps", "2")) == 2
    assert "d.png is JSON, and its plot is called so; name it" in capsys.readouterr().err


def test_of_other_weights_is_refused(place, calibrated, tmp_path, capsys):
    tiny_teacher(seed=1).save_pretrained(tmp_path / "other", role="teacher")
    given = ["sample", tmp_path / "other", "--num-images", "1", "--out", tmp_path / "out", "--calibration", calibrated]
    assert cli.main([str(word) for word in (*given, "--epsilon-scaling", "auto", "--sampler", "euler")]) == 2
    assert "was made for other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_search_over_quality_is_an_option(place, tmp_path):
    out = tmp_path / "c.json"
    more = ("--sampler", "euler", "--steps", "2", "--method", "fid")
    assert cli.main(words(place, out, *more)) == 0
    entry = read_calibration(out).entries[0]
    assert entry.report["method"] == "fid"
    assert "variance_fit" not in entry.report
    assert len({t["b"] for t in entry.report["trials"] if not t["window"]}) >= 3


def test_what_a_run_measures_is_not_what_a_check_sees(calibrated):
    """The check has its own noise: on plain it differs from the plain run of the fit."""
    entry = read_calibration(calibrated).entries[0]
    assert entry.report["trials"][0]["quality"] not in entry.report["check"]["plain"]["values"]
    assert set(entry.report["check"]) == {"plain", SCALE, SHIFT, BOTH}


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (("--sampler", "consistency"), 2, "no correction fits it"),
        (("--sampler", "eulr"), 2, "'eulr' is no sampler; choose of"),
        (("--steps", "0"), 2, "'0' is no whole number >= 1"),
        (("--sampler", "fpndm", "--steps", "2"), 2, "sampler 'fpndm' takes 4 to 1000"),
        (("--data", "nowhere"), 3, "nowhere"),
        (("--out", "/nowhere/x/c.json"), 2, "there is no folder /nowhere/x; make it first"),
    ],
)
def test_wrong_requests_are_one_sentence(place, tmp_path, capsys, more, code, sentence):
    assert cli.main(words(place, tmp_path / "c.json", *more)) == code
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size_and_students_are_refused(place, tmp_path, capsys):
    assert cli.main(words(place, tmp_path / "c.json", "--data", "builtin:fashion_mnist")) == 3
    assert "makes images of 1x8x8" in capsys.readouterr().err
    student = tiny_teacher()
    student.save_pretrained(tmp_path / "student", role="student", levels=(2.5,))
    line = words(place, tmp_path / "c.json")
    line[1] = str(tmp_path / "student")
    assert cli.main(line) == 2
    assert "this model is a student" in capsys.readouterr().err
    sample = ["sample", str(tmp_path / "student"), "--num-images", "1", "--out", str(tmp_path / "o")]
    assert cli.main([*sample, "--epsilon-scaling", "1.01"]) == 2
    assert "a student makes its images in its own few calls" in capsys.readouterr().err
