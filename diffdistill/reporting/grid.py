"""Many images as one picture."""

import math
from typing import TYPE_CHECKING

from PIL import Image

from diffdistill.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

TILE = 56  # pixels: smaller images are enlarged to at least this
LARGEST_TILE = 256  # larger ones are reduced: a grid is an overview


def image_grid(images: "Tensor", columns: int) -> Image.Image:
    """Lay uint8 `(N, C, H, W)`, C = 1 or 3, out row by row, `columns` in a row, with thin white gaps.

    Small images are enlarged by a whole factor without smoothing, so that their pixels can be seen. With labels that
    cycle through the classes and `columns` classes, each column is a class.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise DataError(f"images have {channels} channels and a picture shows 1 or 3; give gray or RGB images")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    tile = _tile_size(width, height)
    gap = max(2, max(tile) // 28)
    step_x, step_y = tile[0] + gap, tile[1] + gap
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    filter_ = Image.Resampling.NEAREST if tile[0] >= width else Image.Resampling.LANCZOS
    for index in range(count):
        row, column = divmod(index, columns)
        picture = to_picture(images[index]).resize(tile, filter_)
        sheet.paste(picture, (gap + column * step_x, gap + row * step_y))
    return sheet


def to_picture(image: "Tensor") -> Image.Image:
    """uint8 `(C, H, W)`, C = 1 or 3, as a Pillow image of mode L or RGB."""
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _tile_size(width: int, height: int) -> tuple[int, int]:
    side = max(width, height)
    if side > LARGEST_TILE:
        return max(1, width * LARGEST_TILE // side), max(1, height * LARGEST_TILE // side)
    factor = max(1, math.ceil(TILE / side))
    return width * factor, height * factor
