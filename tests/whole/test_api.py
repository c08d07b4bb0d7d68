"""The verbs that train as functions: the same run as on the command line, and the same sentences."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffdistill
from diffdistill import registry
from diffdistill.api import overrides_of
from diffdistill.cli import main
from diffdistill.config import load_config
from diffdistill.config.schema import Distill, Train
from diffdistill.errors import ConfigError

SMALL = {
    "max_train_steps": 2, "train_batch_size": 4, "sample_every": 0, "num_threads": 1, "data__limit": 64,
    "evaluation": {"features": "pixels", "num_images": 12, "metrics": ["fid"]},
}  # fmt: skip
NETWORK = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}


def weights(run):
    return load_file(run.model_folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_teacher_and_its_student(tmp_path):
    taught = diffdistill.train(
        "fashion_mnist/teacher", output_dir=tmp_path / "t", network=NETWORK, **SMALL | {"evaluation__at_end": False}
    )
    assert taught.metrics == {}
    assert taught.model.num_classes == 10
    made = diffdistill.distill(
        "fashion_mnist/dmd2", output_dir=tmp_path / "s", teacher=taught.model_folder, student__steps=2,
        **{"student.regression": None}, **SMALL,
    )  # fmt: skip
    assert (made.folder, made.model_folder) == (tmp_path / "s", tmp_path / "s" / "student")
    assert made.metrics.keys() == {"fid"}
    assert math.isfinite(made.metrics["fid"])
    assert len(made.model.levels) == 2
    assert made.model is made.model
    assert "student.steps=2" in (tmp_path / "s" / "config.yaml").read_text()


def test_the_run_is_that_of_the_command_line(tmp_path, capsys):
    small = {**SMALL, "network": NETWORK, "evaluation__at_end": False}
    run = diffdistill.train(
        load_config(Train, "fashion_mnist/teacher", overrides_of({"output_dir": tmp_path / "a", **small}))
    )
    words = overrides_of({"output_dir": str(tmp_path / "b"), **small})
    assert capsys.readouterr().out == ""
    assert main(["train", "fashion_mnist/teacher", *words]) == 0
    assert f"{tmp_path / 'b' / 'model'}: the model" in capsys.readouterr().out
    other = load_file(tmp_path / "b" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in weights(run).items())


def test_settings_are_overrides():
    given = {"student__steps": 2, "level.u_max": np.float64(0.5), "data": {"path": "x", "limit": None}, "a": (1, True)}
    assert overrides_of(given) == ["student.steps=2", "level.u_max=0.5", "data={path: x, limit: null}", "a=[1, true]"]
    config = load_config(
        Distill, "fashion_mnist/dmd2", overrides_of({"output_dir": "x", "student": {"steps": 3}, "level__std": 1e-5})
    ).config
    assert (config.student.steps, config.level.std) == (3, 1e-5)
    assert (
        config.student.optimizer
        == load_config(Distill, "fashion_mnist/dmd2", ["output_dir=x"]).config.student.optimizer
    )
    with pytest.raises(ConfigError, match="setting 'seed' is a Tensor; give a number"):
        overrides_of({"seed": torch.ones(1)})


def test_what_cannot_work_is_said_as_on_the_command_line(tmp_path):
    with pytest.raises(ConfigError, match=r"stepz.*did you mean"):
        diffdistill.distill("fashion_mnist/dmd2", output_dir=tmp_path / "x", student__stepz=2)
    with pytest.raises(ConfigError, match="does not exist"):
        diffdistill.align("emoji/mapoo", output_dir=tmp_path / "x")
    resolved = load_config(Train, "fashion_mnist/teacher", ["output_dir=x"])
    with pytest.raises(ConfigError, match=r"the config is a Train; give a YAML file.*load_config\(Distill"):
        diffdistill.distill(resolved)
    with pytest.raises(ConfigError, match="seed cannot be laid over settings that are resolved already"):
        diffdistill.train(resolved, seed=1)
    assert not (tmp_path / "x").exists()


def test_code_is_allowed_by_the_caller_alone(monkeypatch):
    monkeypatch.setattr(registry._Consent, "given", False)
    for allowed in (False, True):
        with pytest.raises(ConfigError, match="does not exist"):
            diffdistill.train("absent", allow_code=allowed)
        assert registry._Consent.given == allowed


def test_the_package_is_light_and_says_what_it_has(python):
    done = python("-c", "import sys, diffdistill, diffdistill.api; print('torch' in sys.modules, dir(diffdistill))")
    assert done.out.startswith("False")
    assert all(name in done.out for name in ("align", "distill", "train", "Denoiser"))
