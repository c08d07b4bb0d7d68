"""Students to export: of a LoRA run, and trained whole; and what stock diffusers draws with them."""

import json

import torch
from diffusers import DiffusionPipeline
from tiny_text import (
    WIDTH,
    flux,
    pixart,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    text_config,
    unet,
)
from transformers import CLIPTextModelWithProjection

from diffdistill import Denoiser
from diffdistill.pipelines.text.lora import SharedWeights
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.reporting.model_card import text_card

TEACHERS = {
    "sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux, "pixart": pixart,
}  # fmt: skip
TARGETS = ("to_q", "to_out.0", "conv1", "downsamplers.0.conv", "ff.net.2")
PROMPT = "a red thing"


def shaken(network, size):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return network


def student(teacher, folder, *, steps=1, lora=False, size=0.02):
    """A student of the teacher in a folder: with a kept adapter, or trained whole."""
    model = Denoiser.from_pretrained(str(teacher))
    model.adapter.image_size, model.adapter.guidance = 16, 2.5
    levels = text_schedule(model.adapter, model.process, steps, None).levels
    if lora:
        shared = SharedWeights(model.network)
        targets = [t for t in TARGETS if any(name.endswith(f".{t}") for name, _ in model.network.named_modules())]
        model = model.with_network(shaken(shared.adapted(2, 3.0, targets), 0.2))
    else:
        shaken(model.network, size)
    model.save_pretrained(
        folder, role="student", levels=levels, teacher=str(teacher), diffdistill="0",
        card=lambda metadata: text_card(metadata=metadata),
    )  # fmt: skip
    return folder


def call_of(folder):
    return json.loads((folder / "diffdistill.json").read_text())["call"]


def drawn(pipe, call):
    """One image in [0, 1] of a pipeline."""
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    return pipe(PROMPT, **call, generator=torch.Generator().manual_seed(3), output_type="pt").images


def stock(folder):
    return DiffusionPipeline.from_pretrained(folder)


def over(teacher, student, lora=None):
    """The teacher with the student's scheduler, and a LoRA over it."""
    pipe, like = stock(teacher), stock(student)
    pipe.scheduler = like.scheduler
    if lora is not None:
        pipe.load_lora_weights(str(lora))
    return pipe


def export(ask, model, form, out, *more):
    code, said, complaint = ask("export", str(model), "--format", form, "--out", str(out), *map(str, more))
    assert code == 0, complaint
    return said


def models(folder):
    """In the folder teachers, a LoRA student of each UNet and of SD 3, and a whole one of SD."""
    for name, make in TEACHERS.items():
        make(folder / name)
    _two_widths(folder / "sdxl")
    for name in ("sd", "sdxl", "sd3"):
        student(folder / name, folder / f"{name}_lora", lora=True)
    student(folder / "sd", folder / "sd_whole", steps=2)
    return folder


def _two_widths(folder):
    """An SDXL whose second encoder has another width, by which readers tell the two apart, and OpenCLIP's GELU."""
    torch.manual_seed(1)
    pipe = stock(folder)
    config = text_config()
    config.hidden_size, config.hidden_act, config.intermediate_size = 12, "gelu", 24
    pipe.register_modules(
        text_encoder_2=CLIPTextModelWithProjection(config),
        unet=unet(
            cross_attention_dim=WIDTH + 12, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=WIDTH + 6 * 4, use_linear_projection=True,
        ),
    )  # fmt: skip
    pipe.save_pretrained(folder)
