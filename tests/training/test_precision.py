"""mixed_precision: auto, its choice by the hardware, and its trace in the run folder."""

import json

import pytest
import torch
from tiny_commands import NETWORK, TINY, png_folder

from diffdistill.cli import main
from diffdistill.devices import fast_bf16
from diffdistill.training.device import Device


def cpu(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "precision", "dtype"),
    [
        ({"amx_bf16": True}, "bf16", torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, "no", None),  # instructions that do not pay
        ({}, "no", None),
    ],
)
def test_auto_is_bf16_where_the_cpu_has_amx(monkeypatch, capabilities, precision, dtype):
    cpu(monkeypatch, **capabilities)
    device = Device("auto")
    assert (device.precision, device.dtype) == (precision, dtype)
    with device.autocast():
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    assert Device("no").dtype is None
    assert Device("bf16").dtype is torch.bfloat16


def test_a_torch_that_does_not_tell_means_no(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not fast_bf16("cpu")
    assert not fast_bf16("mps")


def test_the_choice_is_recorded_and_another_one_on_resuming_is_told(tmp_path, monkeypatch, capsys):
    folder, _ = png_folder(tmp_path / "images")
    words = [
        "train", "fashion_mnist/teacher", *TINY, *NETWORK, f"data.path={folder}", f"output_dir={tmp_path / 'run'}",
        "mixed_precision=auto", "resume_from_checkpoint=latest", "--quiet",
    ]  # fmt: skip
    cpu(monkeypatch)
    assert main(words) == 0
    environment = tmp_path / "run" / "environment.json"
    assert json.loads(environment.read_text())["mixed_precision"] == "no"
    assert "what ran with" not in capsys.readouterr().out
    cpu(monkeypatch, amx_bf16=True)
    assert main([*words, "max_train_steps=3"]) == 0
    assert "resuming with mixed_precision=bf16 what ran with no: results will differ" in capsys.readouterr().out
    assert json.loads(environment.read_text())["mixed_precision"] == "bf16"
