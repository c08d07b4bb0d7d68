"""K decoders of a UNet over one encoder pass: one is the plain network, all at once are each alone; the pipeline."""

import ast
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from long_skips import stable_diffusion
from tiny import tiny_unet

from diffdistill.errors import ConfigError
from diffdistill.losses import noise_kl
from diffdistill.parts.one_encoder import pipeline as code
from diffdistill.parts.one_encoder.decoders import parallel_decoders
from diffdistill.parts.one_encoder.pipeline import OneEncoderPipeline
from diffdistill.parts.one_encoder.publish import pipeline_files, publish_pipeline

TIMES = [999, 749, 499, 249]


def pixels():
    unet = tiny_unet().eval()
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    return unet, x, lambda time: unet(x, time, labels, return_dict=False)[0]


def texts():
    """With a text of three words for three images, and a side that the blocks do not halve evenly."""
    torch.manual_seed(0)
    unet = stable_diffusion().eval()
    x, words = torch.randn(3, 4, 9, 9), torch.randn(3, 3, unet.config.cross_attention_dim)
    return unet, x, lambda time: unet(x, time, encoder_hidden_states=words, return_dict=False)[0]


@pytest.fixture(params=[pixels, texts])
def world(request):
    return request.param()


@torch.no_grad()
def test_one_decoder_is_the_plain_unet_to_the_last_bit(world):
    unet, _, call = world
    plain = call(torch.tensor(749))
    with parallel_decoders(unet, [749]):
        assert torch.equal(call(torch.tensor(749)), plain)
    assert torch.equal(call(torch.tensor(749)), plain)  # and nothing is left of it


@torch.no_grad()
def test_all_at_once_are_each_alone_on_the_same_encoder(world):
    unet, _, call = world
    with parallel_decoders(unet, TIMES):
        together = call(torch.tensor(999)).chunk(4)
    for time, output in zip(TIMES, together, strict=True):
        with parallel_decoders(unet, [time]):
            torch.testing.assert_close(call(torch.tensor(999)), output, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(call(torch.tensor(999)), together[0], rtol=1e-6, atol=1e-6)
    assert (call(torch.tensor(249)) - together[3]).abs().max() > 1e-4  # its own encoder sees another time


def test_the_encoder_passes_once_and_gradients_reach_it(world):
    unet, _, call = world
    seen = {"down": [], "up": []}
    for name, block in (("down", unet.down_blocks[-1]), ("up", unet.up_blocks[-1])):
        block.register_forward_hook(lambda _block, _in, out, name=name: seen[name].append(out))
    with parallel_decoders(unet, TIMES):
        call(torch.tensor(999)).square().mean().backward()
    assert [len(out[0]) for out in seen["down"]] == [3]
    assert [len(out) for out in seen["up"]] == [12]
    assert unet.conv_in.weight.grad.abs().sum() > 0


def test_a_network_that_is_not_cut_in_two_is_refused():
    with (
        pytest.raises(ValueError, match="Linear has no encoder and decoder"),
        parallel_decoders(torch.nn.Linear(2, 2), TIMES),
    ):
        pass


def test_the_kl_of_predicted_noise_is_that_of_its_moments():
    torch.manual_seed(0)
    eps = 1.5 * torch.randn(4, 2, 3, 16, 16) + 0.2
    flat = eps.flatten(2)
    m, v = flat.mean(-1), flat.var(-1, correction=0)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(m, v.sqrt()), normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(noise_kl(eps), wanted)
    standard = ((flat - m[..., None]) / v[..., None].sqrt()).view_as(eps)
    assert noise_kl(standard).abs().max() < 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion with DDIM's times."""
    pytest.importorskip("transformers")
    from tiny_text import stable_diffusion as whole

    made = tmp_path_factory.mktemp("model") / "sd"
    whole(made)
    pipe = StableDiffusionPipeline.from_pretrained(made)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    pipe.save_pretrained(made)
    return made


def drawn(pipe, **more):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(["a cat", "a dog"], generator=generator, **{"output_type": "latent"} | more).images


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_with_one_step_the_pipeline_is_the_stock_one(folder, guidance_scale):
    stock = StableDiffusionPipeline.from_pretrained(folder)
    ours = OneEncoderPipeline(**stock.components, requires_safety_checker=False)
    more = {"num_inference_steps": 1, "guidance_scale": guidance_scale, "output_type": "pt"}
    assert torch.equal(drawn(ours, **more), drawn(stock, **more))


def test_its_steps_are_the_schedulers_on_outputs_of_one_encoder(folder):
    stock = StableDiffusionPipeline.from_pretrained(folder)
    ours = OneEncoderPipeline(**stock.components, requires_safety_checker=False)
    found = drawn(ours)
    words = stock.encode_prompt(["a cat", "a dog"], "cpu", 1, False)[0]
    x = torch.randn(2, *found.shape[1:], generator=torch.Generator().manual_seed(3))
    stock.scheduler.set_timesteps(4)
    first, start = stock.scheduler.timesteps[0], x
    for time in stock.scheduler.timesteps:
        with torch.no_grad(), parallel_decoders(stock.unet, [time]):
            eps = stock.unet(start, first, encoder_hidden_states=words).sample
        x = stock.scheduler.step(eps, time, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
    assert (found - drawn(stock, num_inference_steps=4, guidance_scale=1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("of_texts", [True, False])
def test_the_files_in_a_folder_import_torch_and_diffusers_alone(of_texts):
    homes = set()
    for text in pipeline_files(of_texts=of_texts).values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom | ast.Import):
                homes.add((getattr(node, "module", None) or node.names[0].name).split(".")[0])
    assert homes == {"collections", "contextlib", "typing", "torch", "diffusers", "decoders"}


def test_a_published_folder_is_a_stock_one_and_one_of_this_where_it_is_told(folder, tmp_path, told):
    target = shutil.copytree(folder, tmp_path / "model")
    file = publish_pipeline(target)
    assert publish_pipeline(target).read_text() == Path(code.__file__).read_text()
    assert type(DiffusionPipeline.from_pretrained(target)) is StableDiffusionPipeline
    pipe = told(target)
    assert (type(pipe).__name__, type(pipe) is OneEncoderPipeline) == ("OneEncoderPipeline", False)
    assert torch.equal(drawn(pipe), drawn(OneEncoderPipeline(**pipe.components, requires_safety_checker=False)))
    file.with_name("decoders.py").write_text("another")
    with pytest.raises(ConfigError, match="is there and is another"):
        publish_pipeline(target)
    (target / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ConfigError, match="is a FluxPipeline"):
        publish_pipeline(target)
