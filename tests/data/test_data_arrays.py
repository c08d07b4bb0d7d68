"""Arrays of any type, order and range are read as they are meant, or refused with what to do."""

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


REFUSED = {
    "from 0 to 1": (FRACTIONS, r"type float32: .*from 0 to 1, so save \(x \* 255\)\.round\(\)\.astype\('uint8'\)"),
    "from -1 to 1": (FRACTIONS * 2 - 1, r"from -1 to 1, so save \(\(x \+ 1\) \* 127\.5\)\.round\(\)"),
    "from 0 to 255": (
        COLOUR.astype(np.float64),
        r"float64: .*, as its values are: save array\.round\(\)\.astype",
    ),
    "half precision": (FRACTIONS.astype(np.float16), r"type float16: .*from 0 to 1, so save \(x \* 255\)"),
    "with NaN": (np.where(FRACTIONS < 0.5, np.nan, FRACTIONS), r"it has \d+ values that are no finite numbers"),
    "with infinity": (np.where(FRACTIONS < 0.5, np.inf, FRACTIONS), r"values that are no finite numbers, mend them"),
    "64-bit": (COLOUR.astype(np.int64), r"type int64: .*, as its values are: save array\.astype\('uint8'\)"),
    "big-endian": (COLOUR.astype(">i4"), r"type >i4: .*, as its values are: save array\.astype"),
    "signed bytes": (
        COLOUR.astype(np.int8),
        r"type int8: images are uint8, 0 to 255; its values are from -128 to 127",
    ),
    "16-bit": (COLOUR.astype(np.uint16) * 257, r"type uint16: .*from 0 to 65535, so bring them to that range"),
    "bools": (COLOUR > 127, r"type bool: .*from 0 to 1, so save \(x \* 255\)"),
    "complex": (COLOUR.astype(np.complex64), r"type complex64: images are uint8, 0 to 255$"),
    "words": (np.array(["a", "b"]), r"type <U1: images are uint8"),
    "records": (np.zeros(3, [("x", "u1", (8, 8)), ("y", "u1")]), r"images are uint8"),
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
