"""Pictures of every kind are read upright, on white and in their range, or said to be left out."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from files_of_data import check, outcome, png, write
from PIL import Image

from diffdistill.data import load_images
from diffdistill.data.pixels import decode


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(depth: int, kind: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG of 8 pixels' width, of rows as they are stored."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, len(rows), depth, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + chunk(b"IEND", b"")


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


PNGS = {
    "1-bit gray": (raw_png(1, 0, [b"\xf0"]), [255] * 4 + [0] * 4),
    "1-bit gray, black transparent": (raw_png(1, 0, [b"\xf0"], chunk(b"tRNS", words(0))), [255] * 8),
    "2-bit gray, level 1 transparent": (
        raw_png(2, 0, [b"\x1b\x1b"], chunk(b"tRNS", words(1))),
        [0, 255, 170, 255, 0, 255, 170, 255],
    ),
    "4-bit gray": (raw_png(4, 0, [bytes([0x01, 0x23, 0x45, 0xEF])]), [0, 17, 34, 51, 68, 85, 238, 255]),
    "16-bit gray": (raw_png(16, 0, [words(*range(0, 65536, 8738))]), [0, 34, 68, 102, 136, 170, 204, 238]),
    "16-bit gray, one level transparent": (
        raw_png(16, 0, [words(*[30000] * 4, *[30001] * 4)], chunk(b"tRNS", words(30000))),
        [255] * 4 + [117] * 4,
    ),
    "16-bit gray and alpha": (raw_png(16, 4, [words(*[0, 0] * 4, *[0, 65535] * 4)]), [255] * 4 + [0] * 4),
    "gray and alpha": (raw_png(8, 4, [bytes([0, 0] * 4 + [50, 255] * 4)]), [255] * 4 + [50] * 4),
    "palette, 1 bit": (
        raw_png(1, 3, [b"\xf0"], chunk(b"PLTE", bytes([9, 9, 9, 200, 200, 200]))),
        [[200] * 3] * 4 + [[9] * 3] * 4,
    ),
    "palette, one entry transparent": (
        raw_png(1, 3, [b"\xf0"], chunk(b"PLTE", bytes([9, 9, 9, 200, 0, 0])), chunk(b"tRNS", b"\0\xff")),
        [[200, 0, 0]] * 4 + [[255] * 3] * 4,
    ),
    "colour, one transparent": (
        raw_png(8, 2, [bytes([1, 2, 3] * 4 + [4, 5, 6] * 4)], chunk(b"tRNS", words(1, 2, 3))),
        [[255] * 3] * 4 + [[4, 5, 6]] * 4,
    ),
    "16-bit colour": (raw_png(16, 2, [words(*[65535, 0, 257] * 8)]), [[255, 0, 1]] * 8),
    "16-bit colour and alpha": (raw_png(16, 6, [words(*[65535, 0, 0, 0] * 4, *[0, 0, 0, 65535] * 4)]),
                                [[255] * 3] * 4 + [[0] * 3] * 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", PNGS)
def test_png_of_every_depth(kind):
    data, expected = PNGS[kind]
    found = decode(data, "a.png")[0]
    assert found.tolist() == [value if isinstance(value, list) else [value] for value in expected]


SHAPE = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


@pytest.mark.parametrize("form", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(form, turn):
    """The stored pixels, turned back by the definition of the tag: row 0 and column 0 of what is seen."""
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    big = np.kron(SHAPE, np.ones((8, 8), np.uint8))
    options = {"webp": {"lossless": True}, "jpeg": {"quality": 100}}.get(form, {})
    Image.fromarray(big).convert("RGB").save(file, form, exif=exif, **options)
    seen = {
        1: SHAPE, 2: SHAPE[:, ::-1], 3: SHAPE[::-1, ::-1], 4: SHAPE[::-1], 5: SHAPE.T, 6: SHAPE[::-1].T,
        7: SHAPE[::-1, ::-1].T, 8: SHAPE[:, ::-1].T,
    }[turn]  # fmt: skip
    found = decode(file.getvalue(), "a")[4::8, 4::8, 0]
    assert found.shape == seen.shape
    assert np.abs(found.astype(int) - seen).max() <= 3


def animation(form: str, **kwargs) -> bytes:
    frames = [Image.new("L", (8, 8), level) for level in (10, 200, 90)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(("form", "ending"), [("gif", "gif"), ("png", "png"), ("webp", "webp"), ("tiff", "tif")])
def test_animations_are_their_first_frame_and_said(form, ending, caplog):
    kwargs = {"lossless": True} if form == "webp" else {}
    write("folder", {f"a.{ending}": animation(form, **kwargs), "b.png": 7})
    check("set", ([10, 7], None), caplog)
    check("set", r"~set has 1 images of several frames: the first of each is read", caplog)


@pytest.mark.parametrize("highest", [200, 4095])
def test_sixteen_bits_that_hold_fewer_are_said(highest, caplog):
    Path("set").mkdir()
    Image.fromarray(np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)).save("set/a.png")
    check("set", rf"~has images of 16 bits that go up to {highest} of 65535, so they are nearly black", caplog)
    Image.fromarray(np.full((8, 8), 50000, np.uint16)).save("set/b.png")
    assert outcome("set", caplog)[1] == ""


@pytest.mark.parametrize("kind", [2, 6, 4])
def test_colours_of_sixteen_bits_that_hold_fewer_are_said(kind, caplog):
    samples = {2: (4095, 100, 0), 6: (4095, 100, 0, 65535), 4: (4095, 65535)}[kind]
    write("folder", {"a.png": raw_png(16, kind, [words(*samples * 8)])})
    check("set", "~set has images of 16 bits that go up to 4095 of 65535, so they are nearly black", caplog)
    write("folder", {"b.png": raw_png(16, kind, [words(*[4096, *samples[1:]] * 8)])})
    assert outcome("set", caplog)[1] == ""


def tiff(values: np.ndarray, white_is_zero: bool = False, sample_format: int = 1) -> bytes:
    """A gray TIFF of one strip, in the order of bytes and of the depth of its values."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    height, width = values.shape
    tags = [(256, width), (257, height), (258, values.itemsize * 8), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height), (279, values.nbytes), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack(f"{order}2sHIH", b"MM" if order == ">" else b"II", 42, 8, len(tags))
    return head + entries + bytes(4) + values.tobytes()


@pytest.mark.parametrize("form", ["u1", "<u2"])
def test_tiff_in_which_zero_is_white(form, caplog):
    levels = np.arange(0, 256, 4, dtype=form).reshape(8, 8)
    stored = levels if form == "u1" else levels * 257
    write("folder", {"a.tif": tiff(stored.astype(form), white_is_zero=True)})
    assert np.array_equal(load_images("set").images[0, 0].numpy(), 255 - levels)
    assert outcome("set", caplog)[1] == ""
    Image.fromarray(stored.astype(form)).save("packed.tif", compression="tiff_adobe_deflate")
    data = Path("packed.tif").read_bytes()
    photometric = struct.pack("<HHII", 262, 3, 1, 1)
    assert data.count(photometric) == 1
    packed = data.replace(photometric, struct.pack("<HHII", 262, 3, 1, 0))
    assert np.array_equal(decode(packed, "a.tif")[..., 0], 255 - levels)


@pytest.mark.parametrize(("highest", "said"), [(65535, ""), (4095, "go up to 4095 of 65535")])
def test_big_endian_tiff_of_sixteen_bits(highest, said, caplog):
    values = np.linspace(0, highest, 64).astype(">u2").reshape(8, 8)
    write("folder", {"a.tif": tiff(values)})
    assert np.array_equal(load_images("set").images[0, 0].numpy(), np.rint(values.astype(float) / 257))
    assert said in caplog.text
    assert ("warning" in caplog.text) == bool(said)


@pytest.mark.parametrize("form", ["i1", "<i2", ">i2"])
def test_tiff_with_a_sign_is_refused(form, caplog):
    write("folder", {"a.tif": tiff(np.full((8, 8), 100, form), sample_format=2)})
    check("set", r"a\.tif has samples with a sign, which may mean several things: save it with 8 or 16 bits", caplog)


def jpeg(mode: str, level: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (8, 8), level).save(file, "jpeg")
    return file.getvalue()


LEFT_OUT = {
    "an ending of Twitter": ({"a.png": 1, "b.jpg_large": jpeg("L", 3)}, r"~has 1 pictures without a picture's ending"),
    "no ending": (
        {"a.png": 1, "n01440764_1": jpeg("L", 3), "n2": png(4)},
        r"~has 2 pictures without .*\(n2, n01440764_1\)",
    ),
    "a copy": ({"a.png": 1, "a.png~": png(1)}, r"~1 pictures without a picture's ending, passed over \(a\.png~\)"),
    "raw and HEIC": (
        {"a.png": 1, "b.HEIC": "x", "c.cr2": "x"},
        r"~kinds that are not read, and passed over \(1 \.cr2, 1 ",
    ),
    "archives": (
        {"a.png": 1, "b.npz": "x", "c.tar": "x"},
        r"~set has b\.npz, c\.tar beside its images, which is not read",
    ),
    "a picture that is a page": ({"a.png": "<!DOCTYPE html>404"}, r"set/a\.png is damaged or not an image: mend it"),
    "a pointer of git-lfs": (
        {"a.png": "version https://git-lfs.github.com/spec/v1\n"},
        r"set/a\.png is damaged or not an",
    ),
    "nothing": ({"a.png": ""}, r"set/a\.png is damaged or not an image"),
    "vector graphics": ({"a.png": 1, "b.svg": "<svg/>"}, r"~passed over \(1 \.svg\)"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_left_out(kind, caplog):
    files, expected = LEFT_OUT[kind]
    check(write("folder", files), expected, caplog)


HIDDEN = [
    "._a.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    "@eaDir/a.png/THUMB.png",
    "#recycle/a.png",
]


def test_hidden_pictures_are_none(caplog):
    write("folder", {"a.png": 1} | dict.fromkeys(HIDDEN, 9))
    check("set", ([1], None), caplog)
    assert outcome("set", caplog)[1] == ""
    write("folder", {"cat/a.png": 1, "dog/b.png": 2} | {f"cat/{name}": 9 for name in HIDDEN}, "classes")
    check("classes", ([1, 2], [0, 1], ("cat", "dog")), caplog)
    for form in ("folder", "zip"):
        data = write(form, {"a.png": 1, ".b.png": 2, "c/.d.jpg": 3, ".f/g.png": 4, ".e.txt": "x"}, "some")
        check(data, rf"~{data} has 3 hidden images, passed over \(.*\.b\.png, .*\.f/g\.png, .*c/\.d\.jpg\)", caplog)


def test_folders_that_cannot_be_read_are_no_loss(monkeypatch, caplog):
    write("folder", {"cat/a.png": 1, "cat/more/b.png": 2, "dog/c.png": 3})
    scan = os.scandir

    def refused(place):
        if str(place).endswith("more"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refused)
    check("set", r"set/cat/more cannot be read \(Permission denied\): check the path and its rights", caplog)


def test_other_colours():
    for mode, level, expected in (
        ("CMYK", (0, 0, 0, 255), 0),
        ("CMYK", (0, 0, 0, 0), 255),
        ("YCbCr", (90, 128, 128), 90),
    ):
        assert abs(int(decode(jpeg(mode, level), "a.jpg")[0, 0, 0]) - expected) <= 2
    for mode in ("1", "L", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (8, 8), 1 if mode == "1" else 255 if mode == "L" else 65535).save(file, "tiff")
        assert decode(file.getvalue(), "a.tif").shape == (8, 8, 1)
        assert decode(file.getvalue(), "a.tif").min() == 255


def test_one_picture_in_colour_makes_the_set_so(caplog):
    write("folder", {"a.png": 7, "b.png": png(9, "RGB")})
    assert load_images("set").images.shape == (2, 3, 8, 8)
    check("set", r"set is RGB \(3 channels\), but the model takes grayscale", caplog, channels=1)
