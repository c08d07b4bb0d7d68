"""The text-to-image pipelines that can be aligned: those adapters that were tested for it."""

from diffdistill.errors import ConfigError
from diffdistill.pipelines.folder import locate, read_json
from diffdistill.pipelines.text.adapters import (
    Adapter,
    Condition,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
    load_adapter,
    rows_of,
)

__all__ = ["ADAPTERS", "Adapter", "Condition", "load_pipeline", "rows_of"]

ADAPTERS: dict[str, type[Adapter]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
}


def load_pipeline(model: str) -> Adapter:
    """Read a pipeline folder or Hub id; never a pickle, never its own code.

    Raises ConfigError for a class without adapter, CheckpointError for a folder that is missing or damaged, and
    ConfigError without transformers.
    """
    folder = locate(model)
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    if name not in ADAPTERS:
        raise ConfigError(
            f"'{model}' is a {name}, and align has adapters for {', '.join(ADAPTERS)}; give one of these, or add a "
            f"subclass of pipelines.text.adapters.Adapter to ADAPTERS in diffdistill/alignment/pipelines.py"
        )
    return load_adapter(folder, name, model)
