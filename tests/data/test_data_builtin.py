"""The bundled set is what its manifest says, and assets are found wherever the package lies."""

import json
import os

import pytest
import torch

from diffdistill.assets import asset, resolve_builtin
from diffdistill.data import load_images
from diffdistill.errors import DataError


def test_builtin_fashion_mnist_is_what_its_manifest_says():
    manifest = json.loads(asset("fashion_mnist/manifest.json").read_text(encoding="utf-8"))
    for split, name in (("train", "train"), ("t10k", "test")):
        got = load_images("builtin:fashion_mnist", split=name)
        expected = manifest["splits"][split]
        assert got.fingerprint == expected["fingerprint"]
        assert got.images.shape == (expected["count"], 1, 28, 28)
        assert torch.bincount(got.labels).tolist() == expected["per_class"]
        assert got.class_names[-1] == "Ankle boot"
        assert got.fingerprint in asset("README.md").read_text(encoding="utf-8")
    assert asset("fashion_mnist/LICENSE").is_file()


def test_damaged_builtin_is_found_out(tmp_path, monkeypatch):
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    for file in resolve_builtin("builtin:fashion_mnist").iterdir():
        os.symlink(file, folder / file.name)
    labels = folder / "t10k-labels-idx1-ubyte.xz"
    data = bytearray(labels.read_bytes())
    data[100] ^= 1
    labels.unlink()
    labels.write_bytes(data)
    monkeypatch.setattr("diffdistill.assets.ROOTS", (tmp_path,))
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte.xz is missing or damaged: install the package again$"
    ):
        load_images("builtin:fashion_mnist", split="test")


def test_assets_are_found_in_a_clone_and_in_a_wheel(tmp_path, monkeypatch):
    for root in ("clone", "wheel"):
        (tmp_path / root / root).mkdir(parents=True)
    monkeypatch.setattr("diffdistill.assets.ROOTS", (tmp_path / "clone", tmp_path / "wheel"))
    assert asset("clone") == tmp_path / "clone" / "clone"
    assert resolve_builtin("builtin:wheel") == tmp_path / "wheel" / "wheel"
    for name in ("nothing", "../clone", "/etc", "", "clone/../../clone"):
        with pytest.raises(DataError, match=r"is bundled: choose one of clone, wheel$"):
            asset(name)
