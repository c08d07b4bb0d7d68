"""Pipelines that folders carry, read as stock diffusers reads them."""

import sys

import pytest
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Reads a folder by its own `pipeline.py`. diffusers keeps one module of that name a process, and its path."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()

    def read(folder):
        forget()
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    yield read
    forget()


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers_modules"]:
        del sys.modules[name]
