"""What belongs together stays together: latents and their prompts, negative prompts and their images, a scale and its
call.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffdistill.data.prompts import Prompt

pytest.importorskip("transformers")

from diffdistill.denoiser import Denoiser
from diffdistill.pipelines.text.conditions import PromptConditions
from diffdistill.pipelines.text.data import TextSet
from tests.worlds.tiny_text import flux


def test_a_step_has_the_prompts_of_its_images():
    numbers = torch.arange(10)
    data = TextSet(numbers + 100, numbers.float().view(10, 1, 1, 1), None, "set", "0")
    latents, ids = data.draw(6, seed=0, step=1)
    assert (latents.flatten() + 100).tolist() == ids.tolist()
    assert ids.tolist() != sorted(ids.tolist())


def test_a_negative_prompt_is_that_of_its_own_image():
    model = nn.Linear(1, 1)
    model.device = torch.device("cpu")
    table = {"": 0, "cat": 1, "dog": 2, "blurry": 3}
    model.prompts = SimpleNamespace(ids=lambda texts, negative=False: torch.tensor([table[text] for text in texts]))
    model.null_condition = torch.zeros_like
    conditions = PromptConditions(prompts=(Prompt("cat"), Prompt("dog", negative="blurry"), Prompt("cat")))
    cond, null = conditions.tensors(model, [0, 1, 2, 4])
    assert (cond.tolist(), null.tolist()) == ([1, 2, 1, 2], [0, 3, 0, 3])


def test_a_scale_is_told_for_one_call_and_latents_have_no_bounds(tmp_path):
    model = Denoiser.from_pretrained(str(flux(tmp_path / "flux")))
    before = model.adapter.guidance
    cond = model.prompts.ids(["a red square"])
    x, sigma = torch.randn(1, *model.image_shape), torch.tensor([1.0])
    with torch.no_grad():
        plain = model(x, sigma, cond)
        told = model.guided_tapped(x, sigma, cond, before + 3.0, ())[0]
        assert model.adapter.guidance == before
        assert torch.equal(model(x, sigma, cond), plain)
    assert not torch.allclose(told, plain)
    assert torch.equal(model.clip(3 * x), 3 * x)
