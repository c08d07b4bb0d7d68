"""A denoiser of pixels as a folder: a stock `ConsistencyModelPipeline`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.parts.scalelong import CONFIG_KEY
from diffdistill.pipelines.folder import Card, forget_origin, write_model
from diffdistill.pipelines.pixel.schedule import pixel_schedule
from diffdistill.pipelines.scheduler_config import Schedule


def save_pixels(
    denoiser: Denoiser,
    folder: Path,
    *,
    role: str,
    levels: Sequence[float],
    card: Card | None = None,
    schedule: Schedule | None = None,
    **provenance: Any,
) -> None:
    """Write `folder`; see `Denoiser.save_pretrained`. schedule: in place of the stock one of these levels.

    ConfigError where no stock pipeline samples the network, and where a consistency model would be saved as the
    teacher that it is not.
    """
    boundary = getattr(denoiser.process, "boundary", 0.0)
    if role == "teacher" and boundary:
        raise ConfigError(
            f"the model's D(x, sigma) has the boundary condition of a consistency model at sigma {boundary:g}, which "
            f"no teacher has; save it with role='student'"
        )
    used = pixel_schedule(denoiser.process, levels) if schedule is None else schedule

    def write_parts(staged: Path) -> dict[str, Any]:
        from diffusers import ConsistencyModelPipeline

        pipeline = ConsistencyModelPipeline(unet=denoiser.network, scheduler=used.scheduler)
        pipeline.save_pretrained(staged, safe_serialization=True)
        settings = forget_origin(staged / "unet" / "config.json")
        home = type(denoiser.network).__module__
        return {
            "role": role,
            "levels": list(levels),
            "null_class": denoiser.null_class,
            "num_classes": denoiser.num_classes,
            "image_shape": list(denoiser.image_shape),
            # The module that stock diffusers must find imported, where the network is not one of its own.
            "network_module": None if home.startswith("diffusers.") else home,
            **({CONFIG_KEY: settings[CONFIG_KEY]} if CONFIG_KEY in settings else {}),
            **({"call": used.call} if levels else {}),
        }

    write_model(folder, write_parts, card, **provenance)
