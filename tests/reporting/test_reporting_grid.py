"""Many images as one picture: where each lies, and that its pixels are kept."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from diffdistill.errors import DataError
from diffdistill.reporting.captions import LINE, caption_font, draw_caption, printable, wrapped
from diffdistill.reporting.grid import image_grid, to_picture


def test_images_lie_row_by_row_enlarged_by_a_whole_factor():
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    sheet = np.array(image_grid(images, 3))
    assert sheet.shape == (2 * 58 + 2, 3 * 58 + 2, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        tile = sheet[2 + row * 58 : 58 + row * 58, 2 + column * 58 : 58 + column * 58]
        wanted = images[index, 0].numpy().repeat(2, 0).repeat(2, 1)
        assert (tile == wanted[..., None]).all()
    assert (sheet[60:116, 118:174] == 255).all()  # the sixth place is empty
    assert (sheet[:2] == 255).all()


def test_colour_is_kept_and_large_images_are_reduced():
    images = torch.zeros(1, 3, 512, 256, dtype=torch.uint8)
    images[:, 1] = 200
    sheet = np.array(image_grid(images, 4))
    assert sheet.shape[:2] == (256 + 18, 128 + 18)
    assert sheet[100, 60].tolist() == [0, 200, 0]


def test_a_picture_holds_the_pixels_of_the_tensor():
    colour = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(torch.from_numpy(np.array(to_picture(colour))), colour.permute(1, 2, 0))
    assert to_picture(colour[:1]).mode == "L"


def test_latents_are_refused():
    with pytest.raises(DataError, match="4 channels"):
        image_grid(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), 1)


def test_a_caption_stands_under_its_picture_and_a_row_is_as_high_as_its_longest():
    images = torch.full((3, 3, 64, 64), 200, dtype=torch.uint8)
    plain = np.array(image_grid(images, 2, ["", "", ""]))
    sheet = np.array(image_grid(images, 2, ["one two three four five six seven eight", "cat", "dog"]))
    gap, side = 4, 128
    lines = len(wrapped("one two three four five six seven eight", side, caption_font()))
    assert lines > 1
    assert sheet.shape == (plain.shape[0] + (lines + 1) * LINE, plain.shape[1], 3)
    for row, top in enumerate((gap, 2 * gap + side + lines * LINE)):
        assert (sheet[top : top + side, gap : gap + side] == 200).all()
        below = sheet[top + side : top + side + LINE]
        assert (below[:, gap : gap + side] < 100).any()
        assert (below[:, 2 * gap + side : 2 * (gap + side)] < 100).any() == (row == 0)  # the fourth place is empty


def test_a_caption_is_no_wider_than_its_picture_and_says_where_it_was_cut():
    font = caption_font()
    for text in ("a quick brown fox " * 30, "w" * 500, "Donaudampfschifffahrtsgesellschaftskapitän fährt"):
        lines = wrapped(text, 112, font)
        assert all(font.getlength(line) <= 112 for line in lines)
        assert len(lines) <= 4
    assert wrapped("w" * 500, 112, font)[-1].endswith("...")
    assert " ".join(wrapped("a quick brown fox jumps over it", 60, font)) == "a quick brown fox jumps over it"


@pytest.mark.parametrize("font", [ImageFont.load_default_imagefont(), caption_font()])
def test_any_text_can_be_drawn_with_any_font(font):
    canvas = ImageDraw.Draw(Image.new("RGB", (200, 80), "white"))
    texts = ("漢字 かな", "👩\u200d🍳🏽", "\ud83d alone", "עברית", "a\0b\tc\r\nd\u2028e", "\U0010ffff", "  ", "")
    for text in texts:
        draw_caption(canvas, (2, 2), wrapped(text, 100, font), font)
    assert printable("a\0b\tc\r\nd\u2028e \u200df", font) == "a b c d e f"
    assert wrapped("  ", 100, font) == []
