"""Pixels: decoding what a file holds into uint8, fitting it to one size, and the range of the networks."""

import io
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffdistill.data.looking import say
from diffdistill.data.source import Entry, Span
from diffdistill.errors import DataError
from diffdistill.machine import total_memory

if TYPE_CHECKING:
    from torch import Tensor

# Only formats that decode pixels: Pillow hands EPS, for one, to an interpreter.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# What Pillow's decoders raise on damaged files: found by damaging files of every format at random.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error)

COLOURS = {1: "grayscale (1 channel)", 3: "RGB (3 channels)"}

SAMPLE_STEPS = {"1": 255, "L;2": 85, "L;4": 17}
"""Gray PNG of fewer than 8 bits, by Pillow's word: it widens the samples, and leaves the transparent level alone."""

INVERTED = "I;16I"  # 16 bits of a TIFF in which 0 is white: Pillow turns fewer bits around, and not these
DARK = 1 << 12  # 16-bit values that stay below are of 12 bits or fewer
BAND = 1 << 22  # pixels that are laid on white at a time
ORIENTATION = 0x0112
PHOTOMETRIC, SAMPLE_FORMAT, SIGNED = 262, 339, 2  # tags of a TIFF, and what the second says of numbers with a sign
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_model_range(images: "Tensor") -> "Tensor":
    """x = u8 / 127.5 - 1: uint8 (B, C, H, W) to float32 in [-1, 1].

    >>> import torch
    >>> to_model_range(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    import torch  # not above: processes that decode have no use for it

    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: "Tensor") -> "Tensor":
    """u8 = round((x + 1) * 127.5), clamped to [0, 255]: the inverse of `to_model_range`, exactly.

    Of floats (B, C, H, W), in [-1, 1] but for what is clamped; returns uint8 of that shape.

    >>> import torch
    >>> from diffdistill.data import to_model_range
    >>> every = torch.arange(256, dtype=torch.uint8)
    >>> torch.equal(to_uint8(to_model_range(every)), every), to_uint8(torch.tensor([-1.3, 0.0, 7.0]))
    (True, tensor([  0, 128, 255], dtype=torch.uint8))
    """
    import torch

    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def decode(
    encoded: bytes | Path | Span | DataError,
    name: str,
    image_size: int | None = None,
    look: Callable[[Image.Image], object] | None = None,
) -> np.ndarray:
    """One image as uint8 (H, W, 1 or 3).

    The EXIF rotation is applied, transparency is laid on white, palettes, CMYK and other colours become RGB,
    16 bits become 8, and of an animation the first frame is taken. With `image_size`, see `fit`. `look` is shown the
    picture as it was opened, before its pixels are read.
    Raises DataError, naming the image, if it is truncated, too large, of an unknown format or missing.
    """
    if isinstance(encoded, DataError):
        raise encoded
    data = encoded.read() if isinstance(encoded, Span) else encoded
    try:
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata of images whose pixels are sound
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_formats()) as opened:
                stored = _stored(opened)  # not known any more when the pixels are read, as `look` may do
                if look is not None:
                    look(opened)
                image, orientation = _eight_bit(opened, stored, name), orientation_of(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(f"{name} has more than {limit:.0f} million pixels: make it smaller or take it out") from error
    except FileNotFoundError as error:
        raise DataError(f"there is no image {name}: add it or take it off the list") from error
    except PermissionError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{name} is damaged or not an image: mend it or take it out") from error
    image = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    if image_size is not None:
        image = fit(image, image_size)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size` (bicubic, antialiased) and cuts out the central square, in one go."""
    width, height = image.size
    short = min(width, height)
    if short == size:
        left, top = (width - size) // 2, (height - size) // 2
        return image.crop((left, top, left + size, top + size))
    middle = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=middle)


@dataclass
class Lost:
    """What is lost of pictures: frames after the first, and the range of 16 bits where it is not used."""

    frames: int = 0
    highest: int | None = None

    def note(self, image: Image.Image) -> None:
        if image.format not in ("MPO", "JPEG") and getattr(image, "is_animated", False):  # no phone's second view
            self.frames += 1
        self.note_range(image)

    def note_range(self, image: Image.Image) -> None:
        highest = _highest(image)
        if highest is not None:
            self.highest = max(self.highest or 0, highest)

    def add(self, other: "Lost") -> None:
        self.frames += other.frames
        if other.highest is not None:
            self.highest = max(self.highest or 0, other.highest)

    def told(self, name: str) -> Iterator[str]:
        """Sentences for animations, and for 16 bits that hold 12 or 8, which are dark."""
        if self.frames:
            yield f"{name} has {self.frames} images of several frames: the first of each is read"
        if self.highest is not None and self.highest < DARK:
            yield (
                f"{name} has images of 16 bits that go up to {self.highest} of 65535, so they are nearly black: bring "
                "them to the whole range, or save them with 8 bits"
            )


def stack(
    images: np.ndarray | Iterable[Entry],
    count: int,
    image_size: int | None,
    name: str,
    decoded: Callable[[Iterable[Entry], int | None, Lost], Iterator[tuple[str, np.ndarray]]] | None = None,
) -> np.ndarray:
    """The first `count` images as one uint8 array (N, C, H, W); gray images among RGB ones become RGB.

    decoded: gives names and images (H, W, C) of entries in their order; None: one after the other.
    Raises DataError for images of several sizes when no `image_size` is given, and for a set larger than the memory.
    """
    lost = Lost()
    if isinstance(images, np.ndarray):
        if image_size is None or images.shape[1:3] == (image_size, image_size):
            return images[:count].transpose(0, 3, 1, 2).copy()
        found: Iterator[tuple[str, np.ndarray]] = (
            (f"image {i}", fit_array(image, image_size)) for i, image in enumerate(images[:count])
        )
    else:
        found = (decoded or one_by_one)(islice(images, count), image_size, lost)
    first, example = next(found)
    whole = _allocate(count, example.shape, name)
    for index, (label, image) in enumerate(chain([(first, example)], found)):
        if image.shape[:2] != whole.shape[2:]:
            raise DataError(several_sizes(name, first, whole.shape[2:], label, image.shape))
        if image.shape[2] > whole.shape[1]:
            gray, whole = whole, _allocate(count, image.shape, name)
            whole[:index] = gray[:index]
        whole[index] = image.transpose(2, 0, 1)  # a gray image spreads over three channels
    check_all(index + 1, count, name)
    for sentence in lost.told(name):
        say(sentence)
    return whole


def one_by_one(entries: Iterable[Entry], image_size: int | None, lost: Lost) -> Iterator[tuple[str, np.ndarray]]:
    """`(name, image (H, W, C))` of encoded images, in their order; notes what is lost of them."""
    return ((name, decode(encoded, name, image_size, lost.note)) for name, encoded in entries)


def check_all(found: int, count: int, name: str) -> None:
    """DataError where there are fewer images than a set announces."""
    if found < count:
        raise DataError(f"{name} announces {count} images and has {found}: it is damaged, make it again")


def several_sizes(name: str, first: str, shape: Sequence[int], label: str, other: Sequence[int]) -> str:
    """What is said of two images of other heights and widths; `first` and `label` name them."""
    return (
        f"{name} has images of several sizes: {first} is {shape[1]}x{shape[0]}, {label} is {other[1]}x{other[0]}; "
        "set the image size (data.image_size) to bring them to one"
    )


def check_room(count: int, shape: Sequence[int], name: str) -> None:
    """DataError where so many images (height, width, channels) are more than the memory of the machine."""
    height, width, channels = shape
    need, have = count * height * width * channels, total_memory()
    if need > have:
        raise DataError(
            f"{name} takes {need / 1e9:.1f} GB of memory ({count} images of {width}x{height}), this machine has "
            f"{have / 1e9:.1f} GB: set data.keep to auto, disk or source, or lower data.image_size or data.limit"
        )


def _allocate(count: int, shape: tuple[int, ...], name: str) -> np.ndarray:
    check_room(count, shape, name)
    height, width, channels = shape
    return np.empty((count, channels, height, width), dtype=np.uint8)


def _formats() -> list[str]:
    Image.init()
    return [known for known in FORMATS if known in Image.OPEN]


def fit_array(image: np.ndarray, size: int) -> np.ndarray:
    fitted = np.asarray(fit(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), size))
    return fitted[..., None] if fitted.ndim == 2 else fitted


def _stored(image: Image.Image) -> str:
    """Pillow's word for the samples of a PNG or TIFF, as they are in the file; call it before they are read."""
    tiles: Any = getattr(image, "tile", None)
    if image.format not in ("PNG", "TIFF") or not tiles:
        return ""
    if image.mode.startswith("I;16") and _tag(image, PHOTOMETRIC) == 0:
        return INVERTED
    words = tiles[0][3]  # a word, or several arguments of which it is the first
    return str(words[0] if isinstance(words, tuple) else words)


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a tag of a TIFF."""
    value: Any = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _highest(image: Image.Image) -> int | None:
    """The highest value of a picture of 16 bits a channel, but for its transparency; None for others.

    Of colours Pillow keeps the upper byte: theirs is the highest that it allows.
    """
    stored = _stored(image)
    if image.mode == "I;16B":  # of which Pillow knows no extrema
        values = np.asarray(image)
        return 65535 - int(values.min()) if stored == INVERTED else int(values.max())
    extrema: Any
    if image.mode.startswith("I"):
        extrema = image.getextrema()
        return 65535 - int(extrema[0]) if stored == INVERTED else int(extrema[1])
    if ";16" not in stored:
        return None
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    colours = [high for band, (_, high) in zip(image.getbands(), bands, strict=True) if band not in "Aa"]
    if stored == "LA;16B":  # which Pillow widens to RGBA
        colours = colours[:1]
    return max(int(high) for high in colours) << 8 | 255


def _eight_bit(image: Image.Image, stored: str, name: str) -> Image.Image:
    """The first frame in mode L or RGB, on white; a large one band by band, so that no more than two are in memory."""
    width, height = image.size
    if _tag(image, SAMPLE_FORMAT) == SIGNED:
        raise DataError(f"{name} has samples with a sign, which may mean several things: save it with 8 or 16 bits")
    image.load()
    rows = max(1, BAND // width)
    if rows >= height:
        return _flat(image, stored, name)
    whole = None
    for top in range(0, height, rows):
        band = _flat(_band(image, top, min(top + rows, height)), stored, name)
        whole = whole or Image.new(band.mode, image.size)
        whole.paste(band, (0, top))
    assert whole is not None
    return whole


def _band(image: Image.Image, top: int, bottom: int) -> Image.Image:
    band = image.crop((0, top, image.width, bottom))
    band.info = image.info
    return band


def _flat(image: Image.Image, stored: str, name: str) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name} has more than 16 bits a channel: save it with 8 or 16")
        if stored == INVERTED:
            values = 65535 - values
        gray = np.rint(values.astype(np.float32) / 257).astype(np.uint8)  # 65535 is 255
        return Image.fromarray(gray if clear is None else np.where(values == clear, np.uint8(255), gray))
    if isinstance(clear, int) and stored in SAMPLE_STEPS:
        gray = np.asarray(image.convert("L"))
        return Image.fromarray(np.where(gray == clear * SAMPLE_STEPS[stored], np.uint8(255), gray))
    if isinstance(clear, tuple) and stored == "RGB;16B":  # of such samples Pillow keeps the upper byte
        image.info = image.info | {"transparency": tuple(value >> 8 for value in clear)}
    if clear is not None or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        flat = Image.new("RGBA", image.size, "white")
        flat.alpha_composite(image.convert("RGBA"))
        return flat.convert("L" if image.mode in ("L", "LA", "La") or stored == "LA;16B" else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def orientation_of(image: Image.Image) -> int | None:
    """What EXIF says of how the picture is to be turned."""
    try:
        return image.getexif().get(ORIENTATION)
    except (SyntaxError, struct.error, ValueError):  # a broken EXIF block does not spoil the pixels
        return None
