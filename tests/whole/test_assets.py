"""Bundled files are looked at when they are read."""

import shutil

import pytest

from diffdistill import assets
from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, DataError

TEACHER = "fashion_mnist_teacher"


@pytest.fixture
def shipped(root, tmp_path, monkeypatch):
    """A copy of what is shipped: the teacher and the table of digests."""
    for name in (TEACHER, "SHA256SUMS"):
        copy = shutil.copytree if (root / "assets" / name).is_dir() else shutil.copy
        copy(root / "assets" / name, tmp_path / name)
    monkeypatch.setattr(assets, "ROOTS", (tmp_path,))
    return tmp_path


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "unet/config.json", "diffdistill.json"])
def test_one_changed_digit_of_a_bundled_model_is_noticed(shipped, name):
    file = shipped / TEACHER / name
    text = file.read_text()
    place = next(i for i, letter in enumerate(text) if letter in "123456789")
    file.write_text(text[:place] + str(int(text[place]) - 1) + text[place + 1 :])
    with pytest.raises(CheckpointError, match="install the package again"):
        Denoiser.from_pretrained(f"builtin:{TEACHER}")


def test_a_missing_file_is_noticed_and_a_whole_folder_is_read(shipped, monkeypatch):
    assert assets.checked_asset(TEACHER) == shipped / TEACHER
    shutil.copytree(shipped, shipped / "again")
    (shipped / "again" / TEACHER / "calibration.json").unlink()
    monkeypatch.setattr(assets, "ROOTS", (shipped / "again",))
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        assets.checked_asset(TEACHER)


def test_of_a_data_set_it_is_the_data_that_are_damaged(root, tmp_path, monkeypatch):
    shutil.copytree(root / "assets" / "fashion_mnist", tmp_path / "fashion_mnist")
    shutil.copy(root / "assets" / "SHA256SUMS", tmp_path)
    (tmp_path / "fashion_mnist" / "LICENSE").write_text("mine")
    monkeypatch.setattr(assets, "ROOTS", (tmp_path,))
    with pytest.raises(DataError, match="LICENSE"):
        assets.resolve_builtin("builtin:fashion_mnist")
