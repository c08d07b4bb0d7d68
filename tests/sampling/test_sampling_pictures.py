"""Formats of drawn images: what keeps every pixel, what does not, and that the record says which."""

import json

import numpy as np
import pytest
from PIL import Image

MODEL = ("builtin:fashion_mnist_teacher", "--num-images", "2", "--steps", "1", "--sampler", "euler", "--device", "cpu")


def pixels(folder, name):
    with Image.open(folder / name) as image:
        return image.format, np.asarray(image).astype(int)


def test_webp_keeps_every_pixel_jpeg_nearly_and_the_record_says_so(ask, tmp_path):
    drawn = {}
    for name, flags in {"png": (), "webp": (), "jpg": (), "lossy": ("--quality", "20")}.items():
        form = "webp" if name == "lossy" else name
        code, _, complaint = ask("sample", *MODEL, "--format", form, *flags, "--out", str(tmp_path / name))
        assert code == 0, complaint
        record = json.loads((tmp_path / name / "samples.json").read_text())
        assert [entry["file"] for entry in record["images"]] == [f"0000{i}.{form}" for i in range(2)]
        assert (tmp_path / name / "grid.png").is_file()
        drawn[name] = record, *pixels(tmp_path / name, f"00001.{form}")
    assert {name: one[1] for name, one in drawn.items()} == {
        "png": "PNG", "webp": "WEBP", "jpg": "JPEG", "lossy": "WEBP"
    }  # fmt: skip
    kept = {name: (one[0]["format"], one[0]["quality"], one[0]["lossless"]) for name, one in drawn.items()}
    assert kept["png"] == ("png", None, True)
    assert kept["webp"] == ("webp", None, True)
    assert kept["jpg"] == ("jpg", 95, False)
    assert kept["lossy"] == ("webp", 20, False)
    gray = drawn["png"][2]
    webp = drawn["webp"][2]
    assert np.array_equal(webp if webp.ndim == 2 else webp[..., 0], gray)
    far = {name: np.abs(drawn[name][2].reshape(*gray.shape, -1)[..., 0] - gray).mean() for name in ("jpg", "lossy")}
    assert 0 < far["jpg"] < 3 < far["lossy"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--quality", "5"), "PNG keeps every pixel"),
        (("--format", "jpg", "--quality", "101"), "is no whole number from 1 to 100"),
        (("--format", "gif"), "invalid choice: 'gif'"),
    ],
)
def test_what_is_no_form_is_refused_before_anything_is_drawn(ask, tmp_path, flags, sentence):
    code, _, complaint = ask("sample", *MODEL, *flags, "--out", str(tmp_path / "x"))
    assert (code, complaint.count("\n")) == (2, 1)
    assert sentence in complaint
    assert not (tmp_path / "x").exists()
