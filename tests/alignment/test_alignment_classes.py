"""Pipelines beyond Stable Diffusion's: what `align` makes of a pair is what their denoiser says, and it runs."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")
pytest.importorskip("peft")

import tiny_unadapted
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from tiny_text import flux, pair_parquet, pixart

from diffdistill.alignment.pairs import times
from diffdistill.cli import main
from diffdistill.config.align import Align
from diffdistill.data.pairs import load_pairs
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.process import per_sample
from diffdistill.training.device import Device
from diffdistill.training.tasks.align import AlignTask, pictures_of

MAKERS = {"flux": flux, "pixart": pixart, "z_image": tiny_unadapted.z_image, "klein": tiny_unadapted.flux_2_klein}
SIDES = {"flux": 16, "pixart": 16, "z_image": tiny_unadapted.SIDE, "klein": tiny_unadapted.SIDE}
TARGETS = {"flux": "[to_q]", "pixart": "[to_q]", "z_image": "[to_q]", "klein": "[to_q]"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    pair_parquet(folder / "pairs.parquet")
    return folder


def made(world, kind):
    folder = world / kind
    return folder if folder.exists() else MAKERS[kind](folder)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_error_of_a_pair_is_that_of_the_models_denoiser(world, kind):
    """D(x, sigma) of `distill`, at x_t / alpha and sigma / alpha: another way to the network."""
    folder, side = made(world, kind), SIDES[kind]
    config = Align(
        output_dir="x", model=str(folder), train_batch_size=2, lora=None,
        data={"path": str(world / "pairs.parquet"), "image_size": side},
        method={"name": "mapo", "loss_space": "x0", "beta": 1.0},
    )  # fmt: skip
    pairs = load_pairs(config.data.path)
    task = AlignTask(config, load_pipeline(str(folder)), pairs, Device("no", 1))
    some = pairs.pairs[:2]
    pictures = pictures_of(some, side)
    latents = task.model.latents(task.model.moments(pictures))
    noised = task.noised(latents, u=torch.tensor([0.3, 0.8]), generator=torch.Generator().manual_seed(0))
    texts = [pair.text for pair in some] * 2
    with torch.no_grad():
        errors = task.errors(noised, task.model.conditions(texts, pictures))
        model = Denoiser.from_pretrained(folder)
        model.adapter.image_size = side
        cond = model.prompts.ids(texts)
        alpha, sigma = noised.alpha.float(), noised.sigma.float()
        x0 = model(noised.x_t / per_sample(alpha, noised.x_t), sigma / alpha, cond)
    want = (x0 - latents).square().flatten(1).mean(1)
    torch.testing.assert_close(torch.cat([errors.win, errors.lose]), want, rtol=2e-3, atol=1e-4)


def test_flux_is_noised_at_the_shift_of_its_size(world):
    """Which its scheduler's own, 3 here, is not: diffusers' pipeline computes it of the number of tokens."""
    model = load_pipeline(str(made(world, "flux")))
    model.image_size = 16
    task = SimpleNamespace(model=model)
    noised = AlignTask.noised(task, torch.zeros(2, *model.latent_shape), u=torch.tensor([0.5]))
    config = model.scheduler.config
    mu = calculate_shift(
        16, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )  # fmt: skip
    factor = math.exp(mu)
    assert abs(factor - config.shift) > 0.5
    assert noised.sigma.tolist() == pytest.approx([factor / (1 + factor)] * 2)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("lora", [True, False])
def test_it_is_aligned_and_stock_diffusers_opens_it(tmp_path, world, kind, lora):
    folder, side = made(world, kind), SIDES[kind]
    words = [
        f"model={folder}", f"data.path={world / 'pairs.parquet'}", f"data.image_size={side}", "max_train_steps=2",
        "train_batch_size=2", "micro_batch_size=null", "log_every=1", "mixed_precision=no", "num_threads=1",
        "gradient_checkpointing=false", "sample_every=2", "checkpoint_every=0", "evaluation.levels=1",
        "evaluation.sampling_steps=1", "data.held_out=0.3", "optimizer.learning_rate=1e-2",
        f"output_dir={tmp_path / 'run'}", f"lora={{rank: 2, targets: {TARGETS[kind]}}}" if lora else "lora=null",
    ]  # fmt: skip
    assert main(["align", "align/mapo_sd15", "--quiet", *words]) == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["loss/win"] > 0
    assert not torch.equal(draw(tmp_path / "run" / "model", side), draw(folder, side))


def draw(folder, side):
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    sized = {"use_resolution_binning": False} if "PixArt" in type(pipe).__name__ else {}
    return pipe(
        prompt="thing 1", height=side, width=side, num_inference_steps=1, generator=noise, output_type="pt", **sized
    ).images  # fmt: skip


def test_a_scheduler_of_other_levels_is_refused():
    from diffusers import DPMSolverMultistepScheduler

    flows = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(ConfigError, match="no training levels that are known"):
        times(flows, torch.tensor([0.5]), None)
