"""Files that `export` writes for ComfyUI, in ComfyUI: its loaders, its `lcm` sampler, beside stock diffusers.

`COMFYUI=FOLDER pytest -m crosscheck tests/crosscheck/test_comfyui.py`, FOLDER a checkout of ComfyUI, which no registry
has, with einops, torchsde, spandrel, sentencepiece, aiohttp and psutil installed. Its code runs in another process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("transformers")

from comfyui_models import teacher
from diffusers import DiffusionPipeline
from export_world import call_of, export, student
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.crosscheck
PROMPT, DRAWS = "a red thing", Path(__file__).with_name("comfyui_draws.py")
IMAGE = (128, 128)  # what networks that are told a size are told
BOUND = 1e-5  # of the largest latent: another attention, another order of sums


@pytest.fixture(scope="module")
def comfyui():
    folder = os.environ.get("COMFYUI")
    if folder is None:
        pytest.skip("COMFYUI is not set: the folder of a checkout of ComfyUI")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    return lambda name: folder / name if (folder / name).exists() else teacher(name, folder)


def by_diffusers(folder):
    """(what both are given, latents of the student's own pipeline)."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    flux = type(pipe).__name__ == "FluxPipeline"
    channels = network.config.in_channels // (4 if flux else 1)
    pixart = type(pipe).__name__ == "PixArtAlphaPipeline"
    size = 64 if pixart else 8  # ComfyUI's PixArt divides by zero for fewer latents
    noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(4))
    call, latents = dict(call_of(folder)), noise
    if type(pipe).__name__ == "StableDiffusionXLPipeline":
        call |= {"original_size": IMAGE, "target_size": IMAGE}
    if pixart:
        call |= {"use_resolution_binning": False, "height": IMAGE[0], "width": IMAGE[1]}
    if flux:
        latents = pipe._pack_latents(noise, 1, channels, 8, 8)
    generator = torch.Generator().manual_seed(0)

    def between(shape, **_):
        """The noise of diffusers' flow scheduler, which it takes of no generator, drawn as ComfyUI draws it."""
        drawn = torch.randn(noise.shape, generator=generator)
        return pipe._pack_latents(drawn, 1, channels, 8, 8) if flux else drawn

    with mock.patch("diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor", between):
        got = pipe(PROMPT, latents=latents, generator=generator, output_type="latent", **call).images
    if flux:
        got = pipe._unpack_latents(got, 16, 16, pipe.vae_scale_factor)
    given = {"noise": noise}
    names = ("cond", "null", "pooled", "null_pooled")
    with torch.no_grad():
        if flux:
            given["cond"], given["pooled"], _ = pipe.encode_prompt(PROMPT, PROMPT)
        elif pixart:
            given["cond"], mask, *_ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
            given["cond"] = given["cond"][:, : int(mask.sum())]
        elif "text_encoder_2" in pipe.components:
            third = {"prompt_3": PROMPT} if "text_encoder_3" in pipe.components else {}
            given |= dict(zip(names, pipe.encode_prompt(PROMPT, PROMPT, **third), strict=True))
        else:
            given["cond"] = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    return {name: t.contiguous() for name, t in given.items() if t is not None and "null" not in name}, got


def by_comfyui(comfyui, folder, given, sampling, denoiser, lora=None):
    save_file(given, folder / "given.safetensors")
    flow = sampling["scheduler"].startswith("FlowMatch")
    sigmas = [t / 1000 for t in sampling["timesteps"]] if flow else sampling["levels"]
    job = {
        "comfyui": comfyui, "denoiser": str(denoiser), "lora": lora and str(lora), "sigmas": [*sigmas, 0.0],
        "given": str(folder / "given.safetensors"), "out": str(folder / "out.safetensors"),
        "guidance": sampling["call"].get("guidance_scale"), "image": IMAGE,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run([sys.executable, str(DRAWS), str(folder / "job.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return load_file(folder / "out.safetensors")["latents"], said


def sampling_of(file):
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["diffdistill"])["sampling"]


def say(words):
    """A figure for the record, shown with `-s` or when the test fails."""
    print(f"\ncrosscheck: {words}", flush=True)


def far(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl", "sd3", "pixart", "flux"])
def test_comfyui_draws_the_student_from_its_file(comfyui, made, tmp_path, ask, kind, steps):
    folder, file = student(made(kind), tmp_path / "student", steps=steps), tmp_path / "mine.safetensors"
    export(ask, folder, "comfyui", file)
    given, want = by_diffusers(folder)
    got, said = by_comfyui(comfyui, tmp_path, given, sampling_of(file), file)
    say(f"{kind}, {steps} steps, {said['class']}: {far(got, want):.1e} of {float(want.abs().max()):.3g}")
    assert far(got, want) <= BOUND


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
def test_comfyui_draws_the_student_from_a_single_file(comfyui, made, tmp_path, ask, kind):
    """`Load Checkpoint`, of the network alone: the encoders and VAE of these teachers have sizes of their own."""
    folder, file = student(made(kind), tmp_path / "student"), tmp_path / "mine.safetensors"
    export(ask, folder, "single-file", file)
    given, want = by_diffusers(folder)
    got, said = by_comfyui(comfyui, tmp_path, given, sampling_of(file), file)
    say(f"{kind}, single file, {said['class']}: {far(got, want):.1e} of {float(want.abs().max()):.3g}")
    assert far(got, want) <= BOUND


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl", "sd3", "pixart", "flux"])
def test_comfyui_draws_the_students_lora_over_the_teachers_file(comfyui, made, tmp_path, ask, kind):
    folder, base = student(made(kind), tmp_path / "student", lora=True), tmp_path / "base.safetensors"
    file, own = tmp_path / "lora.safetensors", tmp_path / "own.safetensors"
    export(ask, made(kind), "comfyui", base)
    export(ask, folder, "comfyui", own)
    export(ask, folder, "comfyui", file, "--rank", "kept")
    given, want = by_diffusers(folder)
    got, said = by_comfyui(comfyui, tmp_path, given, sampling_of(own), base, file)
    without, _ = by_comfyui(comfyui, tmp_path, given, sampling_of(own), base)
    say(f"{kind}, LoRA of {said['patches']} layers: {far(got, want):.1e}, without {far(without, want):.1g}")
    assert far(got, want) <= BOUND
    assert far(without, want) > 1e-2
