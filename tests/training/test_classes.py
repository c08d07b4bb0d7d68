"""Classes of a run: those that no image shows are said, and names decide which class of the teacher an image is of."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_commands import NETWORK, TINY

from diffdistill.cli import main
from diffdistill.data import load_images
from diffdistill.errors import ConfigError
from diffdistill.training.batches import by_name

RUN = [*TINY, "max_train_steps=1", "sample_every=0", "evaluation.at_end=false"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folders(place: str, names: str, seed: int = 0) -> str:
    for name in names:
        for i in range(4):
            pixels = np.random.default_rng(seed + ord(name) * 10 + i).integers(0, 256, (8, 8), dtype=np.uint8)
            Path(place, name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(Path(place, name, f"{i}.png"))
    return place


def test_classes_without_an_image_are_said(capsys):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez("set.npz", images=images, labels=np.arange(12) % 2 + 1)
    assert main(["train", "fashion_mnist/teacher", "data.path=set.npz", "output_dir=one", *RUN, *NETWORK]) == 0
    assert "warning: 'set.npz' has no image of 1 of 3 classes (class 0): they are not" in capsys.readouterr().err
    data = folders("set", "abc")
    words = ["train", "fashion_mnist/teacher", f"data.path={data}", *RUN, *NETWORK]
    assert main([*words, "output_dir=two", "data.limit=5"]) == 0
    assert "'set' has no image of 1 of 3 classes (class 2)" in capsys.readouterr().err
    assert json.loads(Path("two/model/diffdistill.json").read_text())["num_classes"] == 3
    assert main([*words, "output_dir=three"]) == 0
    assert "no image of" not in capsys.readouterr().err


def test_a_teachers_classes_are_known_by_name(capsys):
    words = ["train", "fashion_mnist/teacher", f"data.path={folders('set', 'abc')}", "output_dir=t", *RUN, *NETWORK]
    assert main(words) == 0
    assert json.loads(Path("t/model/diffdistill.json").read_text())["class_names"] == ["a", "b", "c"]
    words = ["distill", "fashion_mnist/dmd2", "teacher=t/model", *RUN, "student.regression=null"]
    assert main([*words, f"data.path={folders('other', 'ac')}", "output_dir=s"]) == 0
    said = capsys.readouterr()
    assert "labels of 'other' are those that the teacher's classes of these names have" in said.out
    assert "'other' has no image of 1 of 3 classes (class 1)" in said.err
    assert json.loads(Path("s/student/diffdistill.json").read_text())["class_names"] == ["a", "b", "c"]
    assert main([*words, f"data.path={folders('third', 'ad')}", "output_dir=u"]) == 2
    assert "'third' has the class 'd' and the teacher knows a, b, c; call the classes as" in capsys.readouterr().err
    assert not Path("u").exists()


def test_labels_follow_names(capsys):
    data = load_images(folders("set", "bd"))
    assert by_name(data, ["d", "c", "b"]).labels.tolist() == [2] * 4 + [0] * 4
    assert by_name(data, ["d", "c", "b"]).class_names == ("d", "c", "b")
    assert by_name(data, None) is data
    assert "classes have no names: those of 'set' are matched by number, 'b' is class 0" in capsys.readouterr().err
    assert by_name(data, ["b", "d"]) is data
    with pytest.raises(ConfigError, match="has the class 'd' and the teacher knows b, c"):
        by_name(data, ["b", "c"])
