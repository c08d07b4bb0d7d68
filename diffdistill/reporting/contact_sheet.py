"""A contact sheet of a set: a row for each class with its first pictures, or pictures from all over it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diffdistill.data.pixels import fit
from diffdistill.data.source import Source
from diffdistill.data.tally import Seen
from diffdistill.reporting.captions import CUT, LINE, Font, caption_font, draw_caption, wrapped
from diffdistill.reporting.grid import CAPTIONED_TILE, TILE, tile_size

CLASSES, OF_A_CLASS = 20, 12  # rows, and pictures in each
SPREAD, CAPTIONED = 96, 48  # pictures of a set without classes, and of one with captions
TITLE = 132  # pixels beside the pictures of a class, for its name
GAP = 6
EDGE = (225, 225, 225)  # around each picture, of which some are as white as the sheet


@dataclass(frozen=True)
class Row:
    """A line of a sheet: what stands at its left, its pictures, a caption under each or none."""

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()


class Samples:
    """The pictures of a set that a sheet shows, kept while others look at all of them, small enough to be kept.

    image_size: what training brings pictures to; they are shown so. None: as they are.
    """

    def __init__(self, image_size: int | None = None):
        self.image_size = image_size
        self.kept: dict[int, list[Image.Image]] = {}
        self.captions: list[str] = []

    def __call__(self, source: Source, count: int) -> Seen:
        """What is told of each picture: the function that keeps it, or does not."""
        labels = None if source.labels is None else source.labels[:count]
        if labels is None:
            return self._spread(count, source.texts)
        shown = {-1, *(int(label) for label in np.unique(labels[labels >= 0])[:CLASSES])}

        def keep(index: int, pixels: np.ndarray) -> None:
            label = int(labels[index])
            if label in shown and len(row := self.kept.setdefault(label, [])) < OF_A_CLASS:
                row.append(self._small(pixels, TILE))

        return keep

    def _spread(self, count: int, texts: Sequence[str] | None) -> Seen:
        most = SPREAD if texts is None else CAPTIONED
        row = self.kept.setdefault(0, [])

        def keep(index: int, pixels: np.ndarray) -> None:
            if len(row) < most and index >= len(row) * count // most:
                row.append(self._small(pixels, TILE if texts is None else CAPTIONED_TILE))
                if texts is not None:
                    self.captions.append(texts[index])

        return keep

    def _small(self, pixels: np.ndarray, least: int) -> Image.Image:
        """At most twice a tile, enlarged by a whole factor without smoothing where it is smaller than one."""
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if self.image_size is not None:
            picture = fit(picture, self.image_size)
        if max(picture.size) >= 2 * least:
            picture.thumbnail((2 * least, 2 * least), Image.Resampling.LANCZOS)
            return picture
        return picture.resize(tile_size(*picture.size, least), Image.Resampling.NEAREST)

    def rows(self, titles: dict[int, str]) -> list[Row]:
        """The lines of the sheet; `titles` are those of the classes, by label."""
        if not titles:
            pictures, across = self.kept.get(0, []), 8 if self.captions else OF_A_CLASS
            return [
                Row("", pictures[start : start + across], self.captions[start : start + across])
                for start in range(0, len(pictures), across)
            ]
        shown = titles if len(titles) <= CLASSES else self.kept
        order = sorted(shown, key=lambda label: (label < 0, label))
        return [Row(titles[label], self.kept.get(label, [])) for label in order]


def contact_sheet(heading: str, rows: Sequence[Row], below: str = "") -> Image.Image:
    """The rows under a heading, each picture in the middle of its place; `below` is said at the end."""
    font = caption_font([heading, below, *(text for row in rows for text in (row.title, *row.captions))])
    pictures = [picture for row in rows for picture in row.pictures]
    width = max((picture.width for picture in pictures), default=TILE)
    left = TITLE if any(row.title for row in rows) else GAP
    across = max((len(row.pictures) for row in rows), default=1)
    total = max(left + across * (width + GAP), 3 * TITLE)
    texts = [[wrapped(caption, width, font) for caption in row.captions] for row in rows]
    tall = [max([2 * LINE, *(picture.height for picture in row.pictures)]) for row in rows]
    below_each = [max((len(lines) for lines in row), default=0) * LINE for row in texts]
    steps = [height + caption + GAP for height, caption in zip(tall, below_each, strict=True)]
    top = LINE + 4 * GAP
    sheet = Image.new("RGB", (total, top + sum(steps) + (LINE + GAP if below else 0) + GAP), "white")
    canvas = ImageDraw.Draw(sheet)
    draw_caption(canvas, (2 * GAP, GAP), wrapped(heading, total - 2 * GAP, font)[:1], font)
    for row, lines, height, step in zip(rows, texts, tall, steps, strict=True):
        _draw_row(sheet, canvas, row, lines, (left, top, width, height), font)
        top += step
    draw_caption(canvas, (2 * GAP, top), wrapped(below, total - 2 * GAP, font)[:1], font)
    return sheet


def _draw_row(
    sheet: Image.Image,
    canvas: ImageDraw.ImageDraw,
    row: Row,
    lines: Sequence[list[str]],
    place: tuple[int, int, int, int],
    font: Font,
) -> None:
    left, top, width, height = place
    name, _, rest = row.title.partition("\n")
    lines_of_name = wrapped(name, TITLE - 4 * GAP, font)
    lines_of_name[1:] = [lines_of_name[1] + CUT] if len(lines_of_name) > 2 else lines_of_name[1:]
    title = [*lines_of_name, *wrapped(rest, TITLE - 4 * GAP, font)]
    draw_caption(canvas, (2 * GAP, top + max(0, (height - len(title) * LINE) // 2)), title, font)
    for column, picture in enumerate(row.pictures):
        x = left + column * (width + GAP)
        corner = x + (width - picture.width) // 2, top + (height - picture.height) // 2
        sheet.paste(picture, corner)
        edges = corner[0] - 1, corner[1] - 1, corner[0] + picture.width, corner[1] + picture.height
        canvas.rectangle(edges, outline=EDGE)
        if lines:
            draw_caption(canvas, (x, top + height), lines[column], font)
