"""Many images as one picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from diffdistill.errors import DataError
from diffdistill.reporting.captions import LINE, caption_font, draw_caption, wrapped

if TYPE_CHECKING:
    from torch import Tensor

TILE = 56  # pixels: smaller images are enlarged to at least this
CAPTIONED_TILE = 112  # room for some words in a line
LARGEST_TILE = 256  # larger ones are reduced: a grid is an overview


def image_grid(images: "Tensor", columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Lay uint8 `(N, C, H, W)`, C = 1 or 3, out row by row, `columns` in a row, with thin white gaps.

    Small images are enlarged by a whole factor without smoothing, so that their pixels can be seen. With labels that
    cycle through the classes and `columns` classes, each column is a class. captions: N texts, one under each picture.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise DataError(f"images have {channels} channels and a picture shows 1 or 3; give gray or RGB images")
    columns = min(columns, count)
    tile = tile_size(width, height, TILE if captions is None else CAPTIONED_TILE)
    gap = max(2, max(tile) // 28)
    font = caption_font(captions or ())
    texts = [wrapped(caption, tile[0], font) for caption in captions or [""] * count]
    rows = [texts[start : start + columns] for start in range(0, count, columns)]
    below = [max(map(len, row)) * LINE for row in rows]  # a row is as high as its longest caption
    tops = [gap + row * (tile[1] + gap) + sum(below[:row]) for row in range(len(rows))]
    sheet = Image.new("RGB", (columns * (tile[0] + gap) + gap, tops[-1] + tile[1] + below[-1] + gap), "white")
    canvas = ImageDraw.Draw(sheet)
    filter_ = Image.Resampling.NEAREST if tile[0] >= width else Image.Resampling.LANCZOS
    for index in range(count):
        row, column = divmod(index, columns)
        left = gap + column * (tile[0] + gap)
        sheet.paste(to_picture(images[index]).resize(tile, filter_), (left, tops[row]))
        draw_caption(canvas, (left, tops[row] + tile[1]), texts[index], font)
    return sheet


def to_picture(image: "Tensor") -> Image.Image:
    """uint8 `(C, H, W)`, C = 1 or 3, as a Pillow image of mode L or RGB."""
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def tile_size(width: int, height: int, least: int) -> tuple[int, int]:
    """Width and height that a picture is drawn with: a whole multiple of its own, or reduced where it is large."""
    side = max(width, height)
    if side > LARGEST_TILE:
        return max(1, width * LARGEST_TILE // side), max(1, height * LARGEST_TILE // side)
    factor = max(1, math.ceil(least / side))
    return width * factor, height * factor
