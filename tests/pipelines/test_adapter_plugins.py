"""An adapter of the user's own, in one file outside the package."""

import pytest
import torch

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.load import load_model
from diffdistill.registry import allow_code

pytest.importorskip("transformers")
from tests.worlds.tiny_text import stable_diffusion

FILE = """
from diffdistill.pipelines.text.adapter import Adapter, AdapterFor

class Loud(Adapter):
    def text(self, prompt):
        return super().text(prompt.upper())

ADAPTER = AdapterFor("StableDiffusionPipeline", Loud)
"""


@pytest.fixture
def world(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    stable_diffusion(tmp_path / "sd")
    return tmp_path


def words(model, prompt):
    return model.prompts.arguments(model.prompts.ids([prompt]))["encoder_hidden_states"]


def test_a_file_of_the_environment_takes_the_place_of_the_known_one(world, monkeypatch):
    plain = words(Denoiser.from_pretrained(world / "sd"), "A CAT")
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(world / "mine.py"))
    assert torch.equal(words(Denoiser.from_pretrained(world / "sd"), "a cat"), plain)


def test_a_file_named_in_the_call_needs_consent(world):
    name = f"{world / 'mine.py'}:ADAPTER"
    with pytest.raises(ConfigError, match="say --allow-code"):
        load_model(world / "sd", adapter=name)
    allow_code()
    try:
        assert torch.equal(
            words(load_model(world / "sd", adapter=name), "a cat"), words(load_model(world / "sd"), "A CAT")
        )
    finally:
        allow_code(False)
