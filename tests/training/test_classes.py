"""Classes of a run: those that no image shows are said, and names decide which class of the teacher an image is of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_commands import NETWORK, TINY

from diffdistill.cli import main
from diffdistill.data import load_images
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.subjects import Subject
from diffdistill.training.batches import by_name, described_classes

RUN = [*TINY, "max_train_steps=1", "evaluation.at_end=false"]


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
    assert "classes of 'set': 0 a (4), 1 b (4), 2 c (4)\n" in capsys.readouterr().err
    assert json.loads(Path("t/environment.json").read_text())["classes"] == "0 a (4), 1 b (4), 2 c (4)"
    assert json.loads(Path("t/model/diffdistill.json").read_text())["class_names"] == ["a", "b", "c"]
    words = ["distill", "fashion_mnist/dmd2", "teacher=t/model", *RUN, "student.regression=null"]
    assert main([*words, f"data.path={folders('other', 'ac')}", "output_dir=s"]) == 0
    said = capsys.readouterr()
    assert "labels of 'other' are those that the teacher's classes of these names have" in said.out
    assert "classes of 'other': 0 a (4), 2 c (4)\n" in said.err
    assert "'other' has no image of 1 of 3 classes (class 1)" in said.err
    assert json.loads(Path("s/student/diffdistill.json").read_text())["class_names"] == ["a", "b", "c"]
    assert main([*words, f"data.path={folders('third', 'ad')}", "output_dir=u"]) == 2
    assert "'third' has the class 'd' and the teacher knows a, b, c; call the classes as" in capsys.readouterr().err
    assert not Path("u").exists()


def test_labels_follow_names(capsys):
    data = load_images(folders("set", "bd"))
    renamed = by_name(data, ["d", "c", "b"])
    assert renamed.labels.tolist() == [2] * 4 + [0] * 4
    assert (renamed.class_names, renamed.num_classes) == (("d", "c", "b"), 3)  # a figure of class 2 has a name
    assert by_name(data, None) is data
    assert "classes have no names: those of 'set' are matched by number, 'b' is class 0" in capsys.readouterr().err
    assert by_name(data, ["b", "d"]) is data
    with pytest.raises(ConfigError, match="has the class 'd' and the teacher knows b, c"):
        by_name(data, ["b", "c"])


def test_names_and_a_teacher_without_them(tmp_path):
    data = load_images(folders("set", "bd"))
    assert by_name(data, None, 2) is data
    with pytest.raises(
        ConfigError, match=r"'set' names 2 classes and the teacher has 10 without names, so which is wh"
    ):
        by_name(data, None, 10)
    np.savez("set.npz", images=data.images[:, 0].numpy(), labels=data.labels.numpy())
    numbered = load_images("set.npz")
    assert by_name(numbered, None, 10) is numbered
    assert by_name(numbered, ["x", "y", "z"]).class_names == ("x", "y", "z")
    assert by_name(numbered, ["x", "y", "z"]).labels.tolist() == [0] * 4 + [1] * 4


def test_labels_that_count_no_classes_are_refused(capsys):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez("set.npz", images=images, labels=np.arange(12) + 20231101)
    words = ["train", "fashion_mnist/teacher", "data.path=set.npz", "output_dir=one", *RUN, *NETWORK]
    assert main(words) == 3
    assert (
        "'set.npz' has 12 different labels up to 20231112: labels count classes from 0 up" in capsys.readouterr().err
    )


def test_what_labels_mean_is_said_in_a_line():
    data = load_images(folders("set", "ab"))
    assert described_classes(data) == "0 a (4), 1 b (4)"
    assert described_classes(data, most=1) == "0 a (4), ... (2 classes)"
    assert described_classes(replace(data, class_names=None)) == "0 (4), 1 (4)"
    assert described_classes(replace(data, class_names=("caf\udce9", "b"))) == "0 caf\\udce9 (4), 1 b (4)"
    assert described_classes(replace(data, labels=None)) is None


def test_a_models_classes_meet_those_of_a_reference_by_name():
    labels = torch.tensor([0, 2])
    reference = replace(load_images(folders("set", "ac")), class_names=("c", "a"))

    def drawn(*class_labels: int) -> Subject:
        batches = iter([(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels)])
        return Subject("m", 2, batches, None, {}, ("a", "b", "c"), class_labels)

    (_, found), *_ = drawn(0, 2).by_names(reference).batches
    assert found.tolist() == [1, 0]
    with pytest.raises(DataError, match="m has the class 'b', and the reference has c, a: call the classes alike"):
        drawn(0, 1, 2).by_names(reference)
