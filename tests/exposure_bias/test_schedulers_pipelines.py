"""Corrected schedulers inside stock pipelines: guidance, learned variances, rebuilt schedulers, folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
)
from tiny import tiny_unet

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.scheduler import DEFAULTS
from diffdistill.schedulers import (
    CorrectedDDIMScheduler,
    CorrectedDDPMScheduler,
    disable_epsilon_scaling,
    disable_time_shift_sampler,
    enable_epsilon_scaling,
    enable_time_shift_sampler,
    epsilon_scaling,
    time_shift_sampler,
)


def pipeline(scheduler: Any = None, kind: Any = DDIMPipeline) -> Any:
    pipe = kind(unet=tiny_unet(classes=None), scheduler=scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, steps: int = 8) -> torch.Tensor:
    options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": steps, "output_type": "pt"}
    return pipe(batch_size=2, **options).images


def test_ddim_pipeline_rebuilds_its_scheduler_and_is_corrected_after() -> None:
    plain = draw(pipeline())
    rebuilt = pipeline(epsilon_scaling(DDIMScheduler(), b=1.05))
    assert type(rebuilt.scheduler) is DDIMScheduler, "the trap: DDIMPipeline makes any scheduler a plain one"
    assert torch.equal(draw(rebuilt), plain)
    enable_epsilon_scaling(rebuilt, b=1.05)
    corrected = draw(rebuilt)
    assert not torch.equal(corrected, plain)
    replaced = pipeline()
    replaced.scheduler = epsilon_scaling(replaced.scheduler, b=1.05)
    assert torch.equal(draw(replaced), corrected)


def test_enabling_and_disabling_keeps_the_object_and_leaves_no_trace() -> None:
    pipe = pipeline()
    scheduler, plain, config = pipe.scheduler, draw(pipe), dict(pipe.scheduler.config)
    enable_epsilon_scaling(pipe, b=1.05)
    scaled = draw(pipe)
    enable_time_shift_sampler(pipe, window=100, cutoff=0)
    both = draw(pipe)
    assert len({tuple(image.flatten().tolist()) for image in (plain, scaled, both)}) == 3
    assert pipe.scheduler is scheduler
    assert type(scheduler) is CorrectedDDIMScheduler
    assert list(pipe.config["scheduler"]) == ["diffdistill.schedulers", "CorrectedDDIMScheduler"]
    disable_time_shift_sampler(pipe)
    assert torch.equal(draw(pipe), scaled)
    disable_epsilon_scaling(pipe)
    assert torch.equal(draw(pipe), plain)
    assert pipe.scheduler is scheduler
    assert type(scheduler) is DDIMScheduler
    assert dict(scheduler.config) == config
    assert list(pipe.config["scheduler"]) == ["diffusers", "DDIMScheduler"]
    disable_epsilon_scaling(pipe)
    assert type(scheduler) is DDIMScheduler, "disabling what is not enabled does nothing"


def test_a_refused_setting_leaves_the_pipeline_as_it_was() -> None:
    pipe = pipeline()
    with pytest.raises(ConfigError, match="window of 2000"):
        enable_time_shift_sampler(pipe, window=2000, cutoff=0)
    assert type(pipe.scheduler) is DDIMScheduler
    assert not set(DEFAULTS) & set(pipe.scheduler.config)


def test_a_saved_pipeline_comes_back_corrected(tmp_path: Path) -> None:
    scheduler = time_shift_sampler(epsilon_scaling(DDPMScheduler(), b=1.05), window=50, cutoff=100)
    pipe = pipeline(scheduler, DDPMPipeline)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == [
        "diffdistill.schedulers",
        "CorrectedDDPMScheduler",
    ]
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is CorrectedDDPMScheduler
    assert torch.equal(draw(loaded), draw(pipe))
    # Without this package a scheduler of one's own choice still loads.
    stock = DDPMPipeline.from_pretrained(tmp_path, scheduler=DDPMScheduler.from_pretrained(tmp_path / "scheduler"))
    assert type(stock.scheduler) is DDPMScheduler


LOAD = """
import sys
from diffusers import DDPMPipeline
try:
    DDPMPipeline.from_pretrained(sys.argv[1])
except ValueError as problem:
    print("REFUSED", problem)
import diffdistill.schedulers
print("LOADED", type(DDPMPipeline.from_pretrained(sys.argv[1]).scheduler).__name__)
"""


def test_a_fresh_process_must_import_the_package_first(python: Callable[..., Any], tmp_path: Path) -> None:
    pipeline(epsilon_scaling(DDPMScheduler(), b=1.05), DDPMPipeline).save_pretrained(tmp_path)
    done = python("-c", LOAD, str(tmp_path))
    assert "REFUSED diffdistill.schedulers" in done.out
    assert "import diffdistill.schedulers before calling" in done.out
    assert "LOADED CorrectedDDPMScheduler" in done.out


def tiny_dit(learned_variance: bool) -> Any:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8 if learned_variance else 4,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,  # the pipeline's null class is 1000
    )
    # The last layer starts at zero; a network that says nothing would show nothing.
    torch.nn.init.normal_(transformer.proj_out_2.weight, std=0.3)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
    pipe = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("learned_variance", [True, False])
def test_scaling_comes_after_guidance(learned_variance: bool) -> None:
    """The pipeline's own loop, step by step: what `step` is given is guided, and its mean is what is divided."""
    pipe = tiny_dit(learned_variance)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    enable_epsilon_scaling(pipe, b=1.05)
    inner = DDIMScheduler(clip_sample=False)
    inner.set_timesteps(4)
    step = pipe.scheduler.step

    def record(out: torch.Tensor, t: torch.Tensor, x: torch.Tensor, **options: Any) -> Any:
        result = step(out, t, x, **options)
        assert torch.equal(out[:2], out[2:]), "both halves of the doubled batch hold the guided prediction"
        seen.append((result.prev_sample, inner.step(out / 1.05, t, x).prev_sample))
        return result

    pipe.scheduler.step = record
    generator = torch.Generator().manual_seed(0)
    pipe([1, 2], guidance_scale=4.0, num_inference_steps=4, generator=generator, output_type="np")
    assert len(seen) == 4
    for found, expected in seen:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variances_reach_the_base_untouched(kind: str) -> None:
    plain = DDPMScheduler(variance_type=kind, clip_sample=False)
    plain.set_timesteps(10)
    scheduler = epsilon_scaling(plain, b=1.05)
    generator = torch.Generator().manual_seed(0)
    x, mean, variance = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3))
    variance = variance.abs() * 0.1
    t = plain.timesteps[4]
    found = scheduler.step(torch.cat([mean, variance], 1), t, x, generator=torch.Generator().manual_seed(1))
    expected = plain.step(torch.cat([mean / 1.05, variance], 1), t, x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.prev_sample, expected.prev_sample)


def test_dpm_solver_takes_learned_variances_too() -> None:
    plain = DPMSolverMultistepScheduler(variance_type="learned_range")
    scheduler = epsilon_scaling(plain, b=1.05)
    plain.set_timesteps(4)
    scheduler.set_timesteps(4)
    x, out = torch.ones(1, 3, 4, 4), torch.linspace(0, 1, 96).reshape(1, 6, 4, 4)
    found = scheduler.step(out, scheduler.timesteps[0], x).prev_sample
    assert torch.equal(found, plain.step(out / 1.05, plain.timesteps[0], x).prev_sample)
