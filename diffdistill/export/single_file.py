"""A whole pipeline in one file, in the layout of the first release, for the families that had one: SD 1, SD 2, SDXL.

What is written is read back by diffusers' own converter before, and must be the same to the bit.
"""

from collections.abc import Callable
from typing import Any

import torch

from diffdistill.errors import ConfigError
from diffdistill.export import clip, unet, vae
from diffdistill.export.source import Source, State, cast, denoiser_weights
from diffdistill.loading import named

STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline")
SDXL = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")


def single_file(source: Source, dtype: str | None) -> State:
    """Every tensor of the pipeline by its name in a checkpoint; ConfigError for a pipeline that had no such file."""
    if source.kind not in (*STABLE_DIFFUSION, *SDXL) or source.network != "UNet2DConditionModel":
        raise ConfigError(_no_checkpoint(source))
    config = source.config(source.part)
    original = checked(denoiser_weights(source), config, unet.to_original, unet.read_back, source.part)
    state = {unet.PREFIX + name: tensor for name, tensor in original.items()}
    config = source.config("vae")
    original = checked(source.weights("vae"), config, vae.to_original, vae.read_back, "vae")
    state |= {vae.PREFIX + name: tensor for name, tensor in original.items()}
    if source.kind in SDXL:
        state |= _text_encoder(source, "text_encoder", "conditioner.embedders.0.", open_clip=False)
        state |= _text_encoder(source, "text_encoder_2", "conditioner.embedders.1.", open_clip=True)
    else:
        own = clip.is_open_clip(source.config("text_encoder"))
        state |= _text_encoder(source, "text_encoder", "cond_stage_model.", open_clip=own)
    return cast(state, dtype, source.name)


def _no_checkpoint(source: Source) -> str:
    if not source.draws_texts:
        possible = "a pixel model goes to others as it is: --format diffusers"
    else:
        possible = "what is possible: --format diffusers, lora, or comfyui, which writes the denoiser alone"
    return f"a {source.kind} has no checkpoint of one file that holds all its parts; {possible}"


def _text_encoder(source: Source, part: str, prefix: str, *, open_clip: bool) -> State:
    state = clip.wrapped(source.weights(part))
    if not open_clip:
        return {f"{prefix}transformer.{name}": tensor for name, tensor in state.items()}
    convert: Convert = lambda given, _: clip.to_open_clip(given)  # noqa: E731
    original = checked(state, source.config(part), convert, clip.read_open_clip, part)
    return {f"{prefix}model.{name}": tensor for name, tensor in original.items()}


Convert = Callable[[State, dict[str, Any]], State]


def checked(state: State, config: dict[str, Any], convert: Convert, read_back: Convert, what: str) -> State:
    """The converted tensors, of which diffusers reads the given ones; ConfigError where the layout cannot hold one."""
    original = convert(state, config)
    try:
        read = read_back(dict(original), config)
    except Exception as error:  # a converter meets names or shapes that it does not know
        raise ConfigError(_cannot(what, f"{type(error).__name__}: {error}")) from error
    lost = sorted(name for name in state.keys() | read.keys() if not _same(state.get(name), read.get(name)))
    if lost:
        raise ConfigError(_cannot(what, named(lost)))
    return original


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.equal(one, other)


def _cannot(what: str, why: str) -> str:
    return (
        f"the {what} of this model is not built as those of published checkpoints, and diffusers would not read it "
        f"back ({' '.join(why.split())[:160]}); what is possible: --format diffusers or lora"
    )
