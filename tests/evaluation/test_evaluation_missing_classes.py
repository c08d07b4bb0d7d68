"""A set that lacks classes of its reference: said, whatever is measured."""

import numpy as np
import pytest
from PIL import Image

from diffdistill.cli import main


def folders(root, names):
    random_ = np.random.default_rng(len(names))
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random_.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / name / f"{i}.png")
    return str(root)


@pytest.mark.parametrize(("classes", "said"), [("a", "no image of 2 of the 3 classes"), ("cba", None)])
def test_classes_of_the_reference_without_an_image_are_said(tmp_path, capsys, classes, said):
    images, reference = folders(tmp_path / "images", classes), folders(tmp_path / "reference", "abc")
    words = ["evaluate", "--images", images, "--reference", reference, "--features", "pixels", "--metrics", "fid"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert ("(b, c): every figure counts them as missing" in err) == (said is not None)
    assert (said or "no image of") in err or said is None
