"""A denoiser of pixels as a folder: a stock `ConsistencyModelPipeline`, or the pipeline that it began as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.files import write_json, write_text
from diffdistill.parts.scalelong import CONFIG_KEY
from diffdistill.pipelines.folder import INDEX, MARK, Card, forget_origin, locate, read_json, write_model
from diffdistill.pipelines.network import network_name
from diffdistill.pipelines.pixel.schedule import is_stock, pixel_schedule
from diffdistill.pipelines.scheduler_config import Schedule


@dataclass(frozen=True)
class Origin:
    """What the folder of a pixel pipeline says beside its network: its index, and the config of its scheduler."""

    index: dict[str, Any]
    scheduler: dict[str, Any]

    @classmethod
    def of(cls, model: str) -> "Origin":
        """Of a folder, `builtin:NAME` or a Hub id; CheckpointError as of `load_model`."""
        folder = locate(model)
        return cls(read_json(folder / INDEX), read_json(folder / "scheduler" / "scheduler_config.json"))

    def write(self, network: Any, staged: Path) -> dict[str, Any]:
        """The same pipeline with this network in its place; returns the config of the network."""
        part = network_name(self.index)
        network.save_pretrained(staged / part, safe_serialization=True)
        write_json(staged / INDEX, {name: value for name, value in self.index.items() if name not in (MARK, PATH)})
        (staged / "scheduler").mkdir()
        write_json(staged / "scheduler" / "scheduler_config.json", self.scheduler)
        return forget_origin(staged / part / "config.json")


PATH = "_name_or_path"  # in files of diffusers: where a model was read from


def save_pixels(
    denoiser: Denoiser,
    folder: Path,
    *,
    role: str,
    levels: Sequence[float],
    card: Card | None = None,
    schedule: Schedule | None = None,
    like: Origin | None = None,
    beside: Mapping[str, str] | None = None,
    **provenance: Any,
) -> None:
    """Write `folder`; see `Denoiser.save_pretrained`. schedule: in place of the stock one of these levels. like: the
    folder that a teacher began with: its pipeline is kept where no stock one stands for the process, as for a
    network with training steps or a flow. beside: texts of further files by their names.

    ConfigError where no stock pipeline samples the network, and where a consistency model would be saved as the
    teacher that it is not.
    """
    boundary = getattr(denoiser.process, "boundary", 0.0)
    if role == "teacher" and boundary:
        raise ConfigError(
            f"the model's D(x, sigma) has the boundary condition of a consistency model at sigma {boundary:g}, which "
            f"no teacher has; save it with role='student'"
        )
    kept = None if is_stock(denoiser.process) or levels else like
    used = pixel_schedule(denoiser.process, levels) if kept is None and schedule is None else schedule

    def write_network(staged: Path) -> dict[str, Any]:
        if kept is not None:
            return kept.write(denoiser.network, staged)
        from diffusers import ConsistencyModelPipeline

        assert used is not None
        pipeline = ConsistencyModelPipeline(unet=denoiser.network, scheduler=used.scheduler)
        pipeline.save_pretrained(staged, safe_serialization=True)
        return forget_origin(staged / "unet" / "config.json")

    def write_parts(staged: Path) -> dict[str, Any]:
        settings = write_network(staged)
        for name, text in (beside or {}).items():
            write_text(staged / name, text)
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
            **({"call": used.call} if levels and used is not None else {}),
            **({} if kept is None else {"pipeline": kept.index.get("_class_name")}),
            **(denoiser.noise.record if role == "teacher" else {}),
        }

    write_model(folder, write_parts, card, **provenance)
