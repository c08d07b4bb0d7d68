"""Arrays of any type, order and range are read as they are meant, or refused with what to do."""

import re
import zipfile

import numpy as np
import pytest
from files_of_data import check

from diffdistill.data import load_images


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
GRAY = COLOUR[..., 0]
FRACTIONS = COLOUR.astype(np.float32) / 255

READ = {
    "NHWC": COLOUR,
    "NCHW": COLOUR.transpose(0, 3, 1, 2),
    "Fortran's order": np.asfortranarray(COLOUR),
    "Fortran's order of NCHW": np.asfortranarray(COLOUR.transpose(0, 3, 1, 2)),
    "a view with steps": COLOUR[::-1][::-1],
    "of three pixels' width": COLOUR[:, :, :3],
}


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("kind", READ)
def test_orders(kind, ending):
    save = {"npy": np.save, "npz": np.savez}[ending]
    save("set", READ[kind]) if ending == "npy" else save("set", images=READ[kind])
    found = load_images(f"set.{ending}").images.numpy()
    expected = COLOUR[:, :, :3] if kind == "of three pixels' width" else COLOUR
    assert np.array_equal(found, expected.transpose(0, 3, 1, 2))
    assert found.flags.c_contiguous


LIKE_COLOUR = {
    "from 0 to 1": (FRACTIONS, "type float32 with values from 0 to 1, taken times 255"),
    "from 0 to 1, twice as long": (COLOUR / 255, "type float64 with values from 0 to 1, taken times 255"),
    "half precision": (FRACTIONS.astype(np.float16), "type float16 with values from 0 to 1, taken times 255"),
    "big-endian fractions": (FRACTIONS.astype(">f4"), "type >f4 with values from 0 to 1, taken times 255"),
    "from 0 to 1, rounded below": (COLOUR / 255 - 1e-9, "with values from -1e-09 to 1, taken times 255"),
    "from 0 to 1, rounded above": (
        FRACTIONS * np.float32(1.0000002),
        "type float32 with values from 0 to 1, taken times 255",
    ),
    "from -1 to 1, rounded": ((COLOUR / 127.5 - 1) * (1 + 1e-7), r"from -1 to 1, taken as \(x \+ 1\) \* 127\.5"),
    "from -1 to 1": (FRACTIONS * 2 - 1, r"values from -1 to 1, taken as \(x \+ 1\) \* 127\.5"),
    "half, from -1 to 1": ((FRACTIONS * 2 - 1).astype(np.float16), r"type float16 .* taken as \(x \+ 1\) \* 127\.5"),
    "NCHW from -1 to 1": (
        (COLOUR / 127.5 - 1).transpose(0, 3, 1, 2),
        r"type float64 .* taken as \(x \+ 1\) \* 127\.5",
    ),
    "from 0 to 255": (COLOUR.astype(np.float32), "type float32 with values from 0 to 255, taken as they are"),
    "from 0 to 255 with fractions": (COLOUR.clip(1, 254) + 0.25, "from 1.25 to 254.2, rounded"),
    "64-bit": (COLOUR.astype(np.int64), "type int64 with values from 0 to 255, taken as they are"),
    "big-endian": (COLOUR.astype(">i4"), "type >i4 with values from 0 to 255, taken as they are"),
    "16-bit": (COLOUR.astype(np.uint16) * 257, "type uint16 with values from 0 to 6.554e.04, divided by 257"),
    "big-endian 16-bit": (COLOUR.astype(">u2") * 257, "divided by 257"),
    "16-bit numbers of 8": (COLOUR.astype(np.uint16), "type uint16 with values from 0 to 255, taken as they are"),
}


@pytest.mark.parametrize("kind", LIKE_COLOUR)
def test_types_and_ranges(kind, caplog):
    array, said = LIKE_COLOUR[kind]
    np.savez("set", images=array)
    with caplog.at_level("WARNING"):
        found = load_images("set.npz").images.numpy()
    expected = COLOUR.clip(1, 254) if "with fractions" in kind else COLOUR
    assert np.array_equal(found, expected.transpose(0, 3, 1, 2))
    assert re.search(f"images in set.npz is of {said}" if said.startswith("type") else said, caplog.text)
    assert caplog.text.count("warning: ") == 1


REFUSED = {
    "with NaN": (np.where(FRACTIONS < 0.5, np.nan, FRACTIONS), r"has \d+ values that are no finite numbers"),
    "with infinity": (np.where(FRACTIONS < 0.5, np.inf, FRACTIONS), r"values that are no finite numbers: mend them"),
    "signed bytes": (COLOUR.astype(np.int8), "type int8, with values from -128 to 127, which may mean several things"),
    "less their mean": (FRACTIONS - FRACTIONS.mean(), r"type float32, with values from -0\.\d+ to 0\.\d+, which may"),
    "standardised": ((FRACTIONS - 0.5) / 0.25, "with values from -2 to 2, which may mean several things"),
    "a little out of range": (FRACTIONS * 1.01, "with values from 0 to 1.01, which may mean several things"),
    "with one value below 0": (
        np.where(np.arange(10)[:, None] == 7, FRACTIONS.min() - np.float32(0.03), FRACTIONS),
        r"from -0\.03 to 1, which may mean several things: cut them to 0 to 1 if 0 is black, or bring",
    ),
    "with one picture from 0 to 255": (
        np.concatenate([COLOUR[:1] + np.float32(0), FRACTIONS[1:]]),
        r"from 0 to 255, and image 1 goes up to 0.9961 alone: bring all pictures to one range",
    ),
    "divided twice": (FRACTIONS / 255, "which is nearly black from 0 to 1: bring it to the whole range"),
    "of 12 bits": (COLOUR.astype(np.uint16) * 16, "type uint16, with values from 0 to 4080, which may mean several"),
    "of 0 and 1 as floats": ((GRAY > 127) * 1.0, "no value but 0 and 1: multiply it by 255 if 1 is white"),
    "of -1 and 1": (np.where(GRAY > 127, 1.0, -1.0), "with values from -1 to 1, which may mean several things"),
    "bools": (COLOUR > 127, r"type bool: pictures are whole numbers, 0 to 255, or fractions"),
    "of two orders": (
        np.zeros((5, 3, 8, 3), np.uint8),
        r"\(5, 3, 8, 3\), which may be \(N, H, W, C\) or \(N, C, H, W\)",
    ),
    "complex": (COLOUR.astype(np.complex64), "type complex64: pictures are whole numbers"),
    "words": (np.array(["a", "b"]), r"has the shape \(2,\): images are"),
    "records": (np.zeros(3, [("x", "u1", (8, 8)), ("y", "u1")]), r"has the shape \(3,\): images are"),
    "of 0 and 1": ((GRAY > 127).astype(np.uint8), r"holds no value but 0 and 1, and images go to 255: multiply them"),
    "cut from fractions": (FRACTIONS.astype(np.uint8), r"holds no value but 0 and 1"),
    "one picture": (COLOUR[0], r"has the shape \(8, 10, 3\), which is that of one picture: give \(N, H, W, C\)"),
    "one picture with transparency": (np.zeros((32, 32, 4), np.uint8), r"which is that of one picture"),
    "with transparency": (np.zeros((5, 8, 8, 4), np.uint8), r"has the shape \(5, 8, 8, 4\): images are \(N, H, W\)"),
    "rows of pixels": (COLOUR.reshape(6, -1), r"has the shape \(6, 240\): images are"),
    "Matlab's order": (COLOUR.transpose(1, 2, 3, 0), r"has the shape \(8, 10, 3, 6\): images are"),
    "videos": (COLOUR[None], r"has the shape \(1, 6, 8, 10, 3\): images are"),
    "a number": (np.uint8(7), r"has the shape \(\): images are"),
}


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("kind", REFUSED)
def test_arrays_that_are_refused(kind, ending, caplog):
    array, expected = REFUSED[kind]
    if ending == "npy":
        np.save("set", array)
    else:
        np.savez("set", images=array)
    check(f"set.{ending}", expected, caplog)


LABELS = {
    "of one column": (np.arange(6)[:, None], [0, 1, 2, 3, 4, 5]),
    "unsigned": (np.arange(6, dtype=np.uint64), [0, 1, 2, 3, 4, 5]),
    "big-endian": (np.arange(6, dtype=">i2"), [0, 1, 2, 3, 4, 5]),
    "one-hot": (np.eye(6), r"set\.npz has 6 images, but labels of shape \(6, 6\): one label an image"),
    "fractions": (np.arange(6.0), r"has the label 0\.0 for image 0"),
    "NaN": (np.full(6, np.nan), r"has the label nan for image 0"),
    "negative": (np.arange(6) - 1, r"has the label -1 for image 0: labels are whole numbers from 0 up"),
    "bytes": (np.array([b"a"] * 6), r"has the label b'a' for image 0"),
    "more than images": (np.arange(7), r"set\.npz has 6 images, but labels of shape \(7,\)"),
    "a number": (np.int64(3), r"set\.npz has 6 images, but labels of shape \(\)"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels(kind, caplog):
    labels, expected = LABELS[kind]
    np.savez("set", images=GRAY, labels=labels)
    if isinstance(expected, str):
        check("set.npz", expected, caplog)
    else:
        assert load_images("set.npz").labels.tolist() == expected


def test_images_of_zeros_and_ones_in_idx(caplog):
    with open("a-images-idx3-ubyte", "wb") as file:
        file.write(b"\0\0\x08\x03\0\0\0\x02\0\0\0\x08\0\0\0\x08" + bytes([0, 1] * 64))
    check("a-images-idx3-ubyte", r"holds no value but 0 and 1, and images go to 255", caplog)


ONE_OR_THREE = (
    r"has the shape \(3, 8, 10\), which may be one picture in colour: give three gray ones as \(3, 8, 10, 1\)"
)


def test_three_gray_images_or_one_in_colour(caplog):
    three = GRAY[:3]
    np.save("set.npy", three)
    check("set.npy", ONE_OR_THREE, caplog)
    np.savez("set.npz", images=three)
    check("set.npz", "^images in set.npz " + ONE_OR_THREE, caplog)
    for name, array in (("gray", three[..., None]), ("one", COLOUR[:1].transpose(0, 3, 1, 2))):
        np.save(name, array)
        assert len(load_images(f"{name}.npy")) == len(array)
    np.savez("set.npz", images=three, labels=[0, 1, 1])
    assert load_images("set.npz").images.shape == (3, 1, 8, 10)


def test_an_array_or_a_split_that_is_there_twice(caplog):
    np.savez("set", images=GRAY)
    with zipfile.ZipFile("set.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("images.npy", archive.read("images.npy"))
    check("set.npz", r"holds 'images\.npy' twice: which counts", caplog)
    np.savez("two", x_val=GRAY, x_validation=GRAY[:2])
    check("two.npz", "has the arrays x_validation and x_val, of one split: leave the one", caplog, split="validation")
