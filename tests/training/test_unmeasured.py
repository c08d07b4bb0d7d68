"""Runs whose pictures no feature at hand can see: said, not measured by another; the model is there all the same."""

from pathlib import Path

import pytest
from tiny_commands import NETWORK, TINY, png_folder

from diffdistill.cli import main
from diffdistill.errors import CheckpointError
from diffdistill.evaluation.extractors import inception


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    def absent(given):
        raise CheckpointError("no Inception weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inception, "find_weights", absent)
    png_folder(tmp_path / "pngs")


def train(*words):
    own = [word for word in TINY if "features" not in word]
    return main(["train", "fashion_mnist/teacher", "data.path=pngs", "output_dir=run", *own, *NETWORK, *words])


def test_colour_pictures_are_not_measured_as_gray_ones(capsys):
    assert train() == 0
    said = capsys.readouterr()
    assert "warning: fid will not be measured: 'pngs' is colour pictures of 8x8, measured by Inception" in said.err
    assert "step 2: FID" not in said.out
    assert not Path("run/evaluation.json").exists()
    assert Path("run/model/model_index.json").is_file()


def test_an_early_stop_without_its_figure_is_refused(capsys):
    stop = "evaluation.stop={metric: fid, margin: 1.0}"
    assert train(stop, "evaluation.every=1") == 4
    assert "measured by Inception where no features are named" in capsys.readouterr().err
    assert not Path("run").exists()


def test_too_few_images_for_a_metric_are_refused(capsys):
    assert train("evaluation.features=pixels", "evaluation.metrics=[prdc]", "evaluation.num_images=4") == 2
    said = (
        "override 'evaluation.num_images=4': evaluation.num_images is 4, and metric 'prdc' needs 6 at least; raise it"
    )
    assert said in capsys.readouterr().err
    assert train("evaluation.features=pixels", "data.limit=1") == 3
    said = "override 'data.limit=1': pngs has 1 image, and metric 'fid' needs 2 at least: give more"
    assert said in capsys.readouterr().err
    assert train("evaluation.features=pixels", "data.limit=1", "evaluation.at_end=false", "train_batch_size=1") == 0


def test_damage_is_told_before_the_number_of_images(capsys):
    Path("one").mkdir()
    Path("one/a.png").write_bytes(b"<!DOCTYPE html>")
    assert main(["train", "fashion_mnist/teacher", "data.path=one", "output_dir=run"]) == 3
    assert main(["evaluate", "--images", "one", "--reference", "one", "--features", "pixels"]) == 3
    said = capsys.readouterr().err
    assert said.count("one/a.png is damaged or not an image") == 2


def test_a_metric_that_cannot_be_measured_loses_no_model(capsys, monkeypatch):
    monkeypatch.setattr("diffdistill.cli.early.too_few", lambda *_: None)
    assert train("evaluation.features=pixels", "evaluation.metrics=[prdc]", "evaluation.num_images=4") == 0
    assert "warning: step 2 is not measured: prdc needs more than 5 images" in capsys.readouterr().err
    assert Path("run/model/model_index.json").is_file()
