"""Many images as one picture: where each lies, and that its pixels are kept."""

import numpy as np
import pytest
import torch

from diffdistill.errors import DataError
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
