"""What the adapters hand to the network is what the stock pipelines do."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from tiny_text import png, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffdistill.data import to_model_range
from diffdistill.data.pairs import picture
from diffdistill.pipelines.text.adapter import ADAPTERS, load_pipeline
from diffdistill.training.tasks.align import AlignTask

MAKERS = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    return {name: load_pipeline(str(make(folder / name))) for name, make in MAKERS.items()}


@pytest.fixture
def pictures():
    return [picture(("tall", png(60, (40, 20))), 16), picture(("wide", png(200, (16, 24))), 16)]


ELSEWHERE = {"Flux", "PixArt", "ReadOff"}  # test_alignment_classes.py


def test_every_adapter_is_tested(models):
    rows = {row.adapter.__name__ for row in ADAPTERS.rows().values()}
    assert {type(model).__name__ for model in models.values()} == rows - ELSEWHERE
    assert {model.image_size for model in models.values()} == {16}


def test_the_network_sees_what_the_stock_pipeline_shows_it(models, pictures):
    """Its inputs are caught in a call of the pipeline itself."""
    for name, model in models.items():
        seen = {}

        def catch(_module, _args, kwargs, seen=seen):
            seen.update(kwargs)

        handle = model.network.register_forward_pre_hook(catch, with_kwargs=True)
        model.pipeline("a thing", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        handle.remove()
        for key, value in model.conditions(["a thing"], pictures[:1]).items():
            if key == "added_cond_kwargs":  # the sizes are those of a 16x16 image there, and of the file here
                torch.testing.assert_close(value["text_embeds"], seen[key]["text_embeds"])
                assert seen[key]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
            else:
                torch.testing.assert_close(value, seen[key], msg=f"{name}: {key}")


def test_sdxl_is_told_of_each_image_and_not_of_the_pair(models, pictures):
    cond = models["sdxl"].conditions(["a", "a"], pictures)
    assert cond["added_cond_kwargs"]["time_ids"].tolist() == [[40, 20, 8, 0, 16, 16], [16, 24, 0, 4, 16, 16]]
    assert cond["added_cond_kwargs"]["time_ids"].dtype == torch.float32


def test_a_part_of_the_pairs_has_its_own_texts_and_sizes(models, pictures):
    tall, wide = pictures
    pairs = [SimpleNamespace(text=text) for text in ("a", "b", "c")]
    whole = [tall, wide, tall, wide, wide, tall]
    task = SimpleNamespace(model=models["sdxl"])
    part = AlignTask.conditions(task, pairs, whole, slice(1, 3))
    expected = models["sdxl"].conditions(["b", "c", "b", "c"], [wide, tall, wide, tall])
    assert torch.equal(part["encoder_hidden_states"], expected["encoder_hidden_states"])
    assert torch.equal(part["added_cond_kwargs"]["time_ids"], expected["added_cond_kwargs"]["time_ids"])
    other = AlignTask.conditions(task, pairs, whole, slice(0, 2))
    assert not torch.equal(part["added_cond_kwargs"]["time_ids"], other["added_cond_kwargs"]["time_ids"])


def test_a_prompt_is_encoded_once(models, pictures, monkeypatch):
    model, calls = models["sd"], []
    monkeypatch.setattr(
        model, "text", lambda prompt: calls.append(prompt) or {"encoder_hidden_states": torch.zeros(1)}
    )
    model.conditions(["new", "newer", "new"], pictures)
    model.conditions(["newer"], pictures)
    assert calls == ["new", "newer"]


def test_latents_are_scaled_and_shifted_as_the_pipeline_undoes_it(models, pictures):
    for model in models.values():
        config = model.pipeline.vae.config
        moments = model.moments(pictures)
        pixels = to_model_range(torch.stack([one.pixels for one in pictures]))
        expected = model.pipeline.vae.encode(pixels).latent_dist.mean
        undone = model.latents(moments) / config.scaling_factor + (config.shift_factor or 0)
        torch.testing.assert_close(undone, expected, rtol=1e-4, atol=1e-5)
        sampled = model.latents(moments, torch.ones_like(expected)) - model.latents(moments)
        torch.testing.assert_close(
            sampled, config.scaling_factor * (0.5 * moments.chunk(2, 1)[1]).exp(), rtol=1e-3, atol=1e-5
        )


def test_nothing_but_the_network_could_be_trained(models):
    assert not any(p.requires_grad for m in models.values() for part in m.pipeline.components.values()
                   if isinstance(part, torch.nn.Module) for p in part.parameters())  # fmt: skip
