"""Decoding: every kind of picture becomes upright 8-bit gray or RGB; the ranges are inverse to each other."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.data import load_images, to_model_range, to_uint8
from diffdistill.data.pixels import decode, fit
from diffdistill.errors import DataError

RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def saved(image: Image.Image, form: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_the_two_ranges_are_inverse():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_model_range(levels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), levels)
    for shift in (-0.49, 0.49):  # anything nearer to a level than to its neighbours is that level
        assert torch.equal(to_uint8(x + shift / 127.5), levels)
    assert to_uint8(torch.tensor([-9.0, -1.1, 1.1, 9.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats_are_exact(form):
    options = {"lossless": True} if form == "webp" else {}
    assert np.array_equal(decode(saved(Image.fromarray(RGB), form, **options), "a"), RGB)
    if form != "webp":
        assert np.array_equal(decode(saved(Image.fromarray(GRAY), form), "a"), GRAY[..., None])


def test_jpeg_in_colour_gray_and_cmyk():
    flat = Image.new("RGB", (16, 16), (200, 30, 60))
    for mode in ("RGB", "CMYK"):
        pixels = decode(saved(flat.convert(mode), "jpeg", quality=100, subsampling=0), "a").astype(int)
        assert pixels.shape == (16, 16, 3)
        assert np.abs(pixels - (200, 30, 60)).max() <= 3
    assert decode(saved(flat.convert("L"), "jpeg"), "a").shape == (16, 16, 1)


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied(form):
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste((0, 0, 255), (0, 0, 16, 16))  # blue in the upper left
    # What a camera stores so that each orientation, applied, gives the upright picture back.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(Image.Transpose(turn))
        exact = {"webp": {"lossless": True}, "jpeg": {"quality": 100, "subsampling": 0}}.get(form, {})
        pixels = decode(saved(stored, form, exif=exif, **exact), "a")
        assert pixels.shape == (32, 48, 3)
        assert np.abs(pixels.astype(int) - np.asarray(upright)).max() <= 8, orientation


def test_exif_orientation_survives_conversion_from_a_palette():
    stored = Image.fromarray(RGB).quantize(8)
    exif = Image.Exif()
    exif[0x0112] = 3
    expected = np.asarray(stored.convert("RGB"))[::-1, ::-1]
    assert np.array_equal(decode(saved(stored, exif=exif), "a"), expected)


def test_a_broken_exif_block_does_not_spoil_the_pixels():
    data = saved(Image.fromarray(RGB), "png", exif=b"Exif\0\0rubbish that is no TIFF header")
    assert np.array_equal(decode(data, "a"), RGB)


def test_transparency_is_laid_on_white():
    rgba = Image.fromarray(np.dstack([RGB, np.full((6, 9), 255, np.uint8)]))
    assert np.array_equal(decode(saved(rgba), "a"), RGB)
    rgba.putalpha(0)
    assert (decode(saved(rgba), "a") == 255).all()
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))  # a fifth of black on white
    assert (decode(saved(half), "a") == 204).all()
    gray = Image.new("LA", (2, 2), (0, 51))
    assert np.array_equal(decode(saved(gray), "a"), np.full((2, 2, 1), 204))


def test_palettes_with_and_without_transparency():
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode(saved(palette), "a"), np.asarray(palette.convert("RGB")))
    seen = decode(saved(palette, transparency=3), "a")
    assert (seen[np.asarray(palette) == 3] == 255).all()
    assert np.array_equal(seen[np.asarray(palette) != 3], np.asarray(palette.convert("RGB"))[np.asarray(palette) != 3])


def test_sixteen_bits_and_one_bit_become_eight():
    deep = np.array([[0, 128, 129, 257 * 100, 65535]], dtype=np.uint16)
    for form in ("png", "tiff"):
        assert decode(saved(Image.fromarray(deep), form), "a")[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode(saved(bits), "a").tolist() == [[[0], [255]]]


def raw_png(bits: int, kind: int, clear: bytes, row: bytes) -> bytes:
    """A PNG of 8x1 samples as its writer chose them, which Pillow's own writer does not offer."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 8, 1, bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"tRNS", clear) if clear else b"", chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "kind", "clear", "row", "first", "last"),
    [
        (1, 0, struct.pack(">H", 0), b"\x01", [255], [255]),
        (1, 0, struct.pack(">H", 1), b"\x01", [0], [255]),
        (2, 0, struct.pack(">H", 1), b"\x55\x54", [255], [0]),
        (4, 0, struct.pack(">H", 3), b"\x33\x33\x33\x35", [255], [85]),
        (8, 0, struct.pack(">H", 3), bytes([3] * 7 + [5]), [255], [5]),
        (16, 0, struct.pack(">H", 30000), struct.pack(">8H", *[30000] * 7, 257), [255], [1]),
        (16, 2, struct.pack(">3H", 999, 5, 9), struct.pack(">24H", *[999, 5, 9] * 7, 257, 0, 0), [255] * 3, [1, 0, 0]),
        (16, 4, b"", struct.pack(">16H", *[257, 0] * 7, 257, 65535), [255], [1]),
    ],
)  # fmt: skip
def test_transparency_of_every_depth_is_laid_on_white_and_gray_stays_gray(bits, kind, clear, row, first, last):
    pixels = decode(raw_png(bits, kind, clear, row), "a")
    assert (pixels[0, 0].tolist(), pixels[0, -1].tolist()) == (first, last)


def test_floats_are_refused():
    data = saved(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff")
    with pytest.raises(DataError, match=r"^a has more than 16 bits a channel: save it with 8 or 16$"):
        decode(data, "a")


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for form in ("gif", "webp", "png"):
        data = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=40)
        assert np.abs(decode(data, "a").astype(int) - (255, 0, 0)).max() <= 3


def test_fit_keeps_the_middle_and_leaves_the_right_size_alone():
    image = Image.fromarray(RGB)
    assert np.array_equal(np.asarray(fit(image, 6)), RGB[:, 1:7])
    assert np.array_equal(np.asarray(fit(Image.fromarray(RGB[:, :6]), 6)), RGB[:, :6])
    # Left black, middle gray, right white: only the middle square is left, at any size.
    bands = Image.fromarray(np.repeat(np.array([0, 128, 255], np.uint8), 40)[None].repeat(40, 0))
    for size in (3, 16, 40, 77):
        seen = np.asarray(fit(bands, size))
        assert seen.shape == (size, size)
        assert abs(int(seen[size // 2, size // 2]) - 128) <= 1
    assert np.asarray(fit(bands.transpose(Image.Transpose.ROTATE_90), 8)).shape == (8, 8)


def test_fit_is_antialiased():
    """A one-pixel chessboard shrinks to even gray, not to a pattern."""
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    seen = np.asarray(fit(board, 8)).astype(int)
    assert np.abs(seen - 127.5).max() < 3


def test_a_very_long_picture_does_not_fill_the_memory():
    """Cropped while it is resized: resizing all of it first would take 900 GB."""
    assert fit(Image.new("L", (60_000, 1)), 4000).size == (4000, 4000)


def test_image_size_brings_several_sizes_to_one(tmp_path):
    for i, size in enumerate([(9, 6), (20, 31), (4, 4)]):
        Image.new("L", size, 40 * i).save(tmp_path / f"{i}.png")
    images = load_images(str(tmp_path), image_size=6).images
    assert images.shape == (3, 1, 6, 6)
    assert [image.unique().tolist() for image in images] == [[0], [40], [80]]


def test_image_size_works_on_arrays_as_on_files(tmp_path):
    for name, pixels in (("colour", RGB), ("gray", GRAY)):
        np.savez(tmp_path / f"{name}.npz", images=pixels[None])
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        from_array = load_images(str(tmp_path / f"{name}.npz"), image_size=4).images
        assert torch.equal(from_array, load_images(str(tmp_path / name), image_size=4).images)


def test_a_large_picture_is_laid_on_white_band_by_band(monkeypatch):
    rgba = Image.fromarray(np.random.default_rng(2).integers(0, 256, (11, 7, 4), dtype=np.uint8))
    deep = Image.fromarray(np.random.default_rng(3).integers(0, 65536, (11, 7), dtype=np.uint16))
    palette = rgba.convert("RGB").quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [
        *(saved(rgba.convert(mode)) for mode in ("RGBA", "RGB", "LA", "L", "1")), saved(deep),
        saved(palette, transparency=3), saved(palette, transparency=bytes(range(0, 160, 10))), saved(rgba, exif=exif),
        raw_png(16, 2, struct.pack(">3H", 999, 5, 9), struct.pack(">24H", *[999, 5, 9] * 7, 257, 0, 0)),
    ]  # fmt: skip
    whole = [decode(data, "a") for data in pictures]
    for band in (1, 14, 50):
        monkeypatch.setattr("diffdistill.data.pixels.BAND", band)
        assert all(np.array_equal(decode(data, "a"), one) for data, one in zip(pictures, whole, strict=True))
