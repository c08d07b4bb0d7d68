"""Which pipeline classes of diffusers are known, and how one is read."""

from pathlib import Path

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.text.adapters.base import Adapter, Condition, Size, StableDiffusion, rows_of
from diffdistill.pipelines.text.adapters.flux import Flux
from diffdistill.pipelines.text.adapters.pixart import PixArt
from diffdistill.pipelines.text.adapters.sd3 import StableDiffusion3
from diffdistill.pipelines.text.adapters.sdxl import StableDiffusionXL

__all__ = [
    "ADAPTERS", "Adapter", "Condition", "Flux", "PixArt", "Size", "StableDiffusion", "StableDiffusion3",
    "StableDiffusionXL", "load_adapter", "rows_of",
]  # fmt: skip

ADAPTERS: dict[str, type[Adapter]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
}


def load_adapter(folder: Path, name: str, model: str) -> Adapter:
    """Read the pipeline in `folder`, of class `name`; never a pickle, never its own code.

    model: what the user calls it. Raises ConfigError for a class without adapter and without transformers,
    CheckpointError for a folder that is damaged.
    """
    if name not in ADAPTERS:
        raise ConfigError(
            f"'{model}' is a {name}, and there are adapters for {', '.join(ADAPTERS)}; give one of these, or write a "
            f"subclass of pipelines.text.adapters.Adapter (docs/text_to_image.md) and add it to ADAPTERS there"
        )
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError("a text-to-image pipeline needs transformers: pip install 'diffdistill[text]'") from error
    import diffusers

    try:
        pipeline = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"'{model}' could not be loaded ({' '.join(str(error).split())[:200]}); make or fetch the folder again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return ADAPTERS[name](pipeline, folder)
