"""A sampler of the user's own, in one file outside the package."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.cli import front
from tests.worlds.tiny import tiny_teacher

FILE = """
from diffdistill.sampling.sampler import Sampler

def last_word(denoise, x, sigmas, draw):
    for sigma in sigmas[:-1]:
        x0 = denoise(x, sigma)
    return x0

SAMPLER = Sampler("last_word", "D at every level, of the first noise", steps=3, run=last_word)
"""


@pytest.fixture
def world(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    tiny_teacher().save_pretrained(tmp_path / "teacher", role="teacher")
    return tmp_path


def command(world, sampler, out="out"):
    model, out = str(world / "teacher"), str(world / out)
    return ["sample", model, "--num-images", "2", "--out", out, "--sampler", sampler, "--device", "cpu", "--quiet"]


def test_a_file_of_the_environment_is_a_sampler_like_any_other(world, ask, capsys, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(world / "mine.py"))
    with pytest.raises(SystemExit):
        front.main(["sample", "--help"])
    assert "last_word" in capsys.readouterr().out
    code, out, _ = ask(*command(world, "last-word"))
    assert code == 0
    assert "last_word, 3 evaluations each" in out
    record = json.loads((world / "out" / "samples.json").read_text())
    assert (record["sampler"], record["steps"], record["evaluations"]) == ("last_word", 3, 3)


def test_a_file_named_in_the_call_is_run_with_the_users_consent(world, ask):
    name = f"{world / 'mine.py'}:SAMPLER"
    code, _, error = ask(*command(world, name))
    assert code == 2
    assert "say --allow-code" in error
    assert not (world / "out").exists()
    assert ask(*command(world, name), "--allow-code")[0] == 0
    assert json.loads((world / "out" / "samples.json").read_text())["sampler"] == name


def test_it_is_given_the_noise_of_the_first_level_and_its_result_is_the_image(world, ask, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(world / "mine.py"))
    assert ask(*command(world, "last_word"))[0] == 0
    noise = torch.randn((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the network is called with 16 images on a CPU, as always
        x0 = tiny_teacher()(80.0 * noise.repeat(16, 1, 1, 1), torch.full((16,), 0.002), torch.zeros(16).long())[0, 0]
    wanted = ((x0 + 1) * 127.5).round().clamp(0, 255)
    image = torch.from_numpy(np.array(Image.open(world / "out" / "00000.png"))).float()
    assert (image - wanted).abs().max() <= 1


def test_a_correction_of_it_is_refused(world, ask, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(world / "mine.py"))
    code, _, error = ask(*command(world, "last_word"), "--epsilon-scaling", "1.01")
    assert code == 2
    assert "follows no differential equation, so no correction fits it" in error
