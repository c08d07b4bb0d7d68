"""The formats of `export`, and what is asked for: no torch, for the command line reads this."""

from dataclasses import dataclass

from diffdistill.errors import ConfigError

__all__ = ["Wish"]

FORMATS = {
    "diffusers": "a folder for DiffusionPipeline.from_pretrained",
    "single-file": "one file in the layout of the first release, as checkpoints of SD 1, SD 2 and SDXL have it",
    "lora": "a LoRA by the names of diffusers and peft",
    "kohya": "a LoRA by the names of kohya's trainer (lora_unet_...)",
    "comfyui": "the denoiser for ComfyUI's models/diffusion_models; with --rank a LoRA for models/loras",
}
"""By name: what is written."""
DTYPES = ("float32", "float16", "bfloat16")
KEPT, FULL = "kept", "full"
"""Words for a rank: the adapter that a run kept as it is; as many directions as float32 tells apart."""


@dataclass(frozen=True)
class Wish:
    """What to write. dtype: None as the weights are; rank: of a LoRA, `kept`, `full` or a number; base: of a LoRA, the
    model that it is laid over, in place of the one in the record.

    >>> Wish("comfyui").is_lora, Wish("comfyui", rank="16").is_lora
    (False, True)
    """

    format: str
    dtype: str | None = None
    rank: str | None = None
    base: str | None = None

    @property
    def is_lora(self) -> bool:
        return self.format in ("lora", "kohya") or (self.format == "comfyui" and self.rank is not None)


def complaint(wish: Wish) -> str | None:
    """What is wrong with a wish; None for one that can be asked for.

    >>> complaint(Wish("lora", rank="16"))
    >>> complaint(Wish("single-file", rank="16"))
    '--rank goes with a LoRA (--format lora, kohya or comfyui): leave it out'
    """
    if wish.rank is not None and not wish.is_lora:
        return "--rank goes with a LoRA (--format lora, kohya or comfyui): leave it out"
    if wish.base is not None and not wish.is_lora:
        return "--base goes with a LoRA (--format lora or kohya, or comfyui with --rank): leave it out"
    if wish.rank is not None and not (wish.rank in (KEPT, FULL) or (wish.rank.isdecimal() and int(wish.rank) > 0)):
        return f"'{wish.rank:.40}' is no rank; give a whole number from 1, {KEPT} or {FULL}"
    return None


def check(wish: Wish) -> None:
    """ConfigError for what cannot be asked for of any model."""
    if wish.format not in FORMATS:
        raise ConfigError(f"'{wish.format:.40}' is no format of export; choose one of {', '.join(FORMATS)}")
    if wish.dtype not in (None, *DTYPES):
        raise ConfigError(f"'{wish.dtype:.40}' is no precision of export; choose one of {', '.join(DTYPES)}")
    if (what := complaint(wish)) is not None:
        raise ConfigError(what)
