"""Pictures that a network does not take are told by one sentence, with the data's name, before it is built."""

from pathlib import Path

import numpy as np
import pytest
from tiny_commands import NETWORK, TINY

from diffdistill.cli import main
from diffdistill.training.tasks import teacher

SETS = {
    "oblong": ((8, 12), [], "'set.npz' has images of 12x8, and a network of UNet kind takes square ones; set"),
    "odd": (
        (9, 9), [], "'set.npz' has images of 9x9, and this network takes sides that are multiples of 2; set data.im",
    ),
    "odd for patches": (
        (8, 9), ["network.kind=uvit", "network.uvit.patch_size=4"],
        "has images of 9x8, and this network takes sides that are multiples of 4; set data.image_size=8, or change "
        "network.uvit.patch_size",
    ),
    "smaller than a patch": (
        (3, 3), ["network.kind=uvit", "network.uvit.patch_size=4"], "multiples of 4; set data.image_size=4, or change",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_pictures_that_do_not_fit(kind, tmp_path, monkeypatch, capsys):
    def built(*_):
        raise AssertionError("the network is built")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teacher, "build_network", built)
    size, words, sentence = SETS[kind]
    np.savez("set.npz", images=np.random.default_rng(0).integers(0, 256, (12, *size), dtype=np.uint8))
    network = [] if words else NETWORK
    own = ["train", "fashion_mnist/teacher", "data.path=set.npz", "output_dir=run", *TINY, *network, *words]
    assert main(own) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("error: ") == 1
    assert not Path("run").exists()


def test_pictures_of_several_sizes_are_told_with_the_setting(tmp_path, monkeypatch, capsys):
    from files_of_data import png

    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    Path("set/0.png").write_bytes(png(1))
    Path("set/1.png").write_bytes(png(1, size=(12, 8)))
    own = ["train", "fashion_mnist/teacher", "data.path=set", "output_dir=run", *TINY, *NETWORK, "train_batch_size=2"]
    assert main(own) == 3
    assert (
        "set has images of several sizes: set/0.png is 8x8, set/1.png is 12x8; set the image size (data.image_size)"
        in (capsys.readouterr().err)
    )
    assert not Path("run").exists()
