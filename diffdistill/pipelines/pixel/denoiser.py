"""Pixel pipelines read from folders, and consistency models of others, which sample as students."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError
from diffdistill.pipelines.network import load_network, network_name
from diffdistill.pipelines.pixel.consistency import KEY, ConsistencySchedule
from diffdistill.pipelines.pixel.save import save_pixels
from diffdistill.pipelines.scheduler_config import Schedule
from diffdistill.precision import OWN
from diffdistill.process import Process


class ConsistencyModel(Denoiser):
    """A consistency model of others: a student with any number of steps, at the levels of its own scheduler."""

    described_as = "a consistency model"

    @property
    def schedule(self) -> ConsistencySchedule:
        """The settings of the scheduler that it came with."""
        return ConsistencySchedule(**self.metadata[KEY])

    def few_step_levels(self, steps: int | None) -> tuple[float, ...]:
        return self.schedule.levels(steps or 1)

    @property
    def few_step_settings(self) -> dict[str, Any]:
        own = self.schedule
        return super().few_step_settings | {"s_noise": own.s_noise, "clip": own.clip_denoised}

    def save_pretrained(
        self, folder: str | Path, *, role: str, levels: Sequence[float] = (), **provenance: Any
    ) -> None:
        """Saved with its own scheduler, unless it was trained to other levels."""
        if tuple(levels) not in ((), self.levels):
            super().save_pretrained(folder, role=role, levels=levels, **provenance)
            return
        schedule = Schedule(self.schedule.scheduler(), self.levels, {"num_inference_steps": 1})
        about = {KEY: asdict(self.schedule)} | provenance
        save_pixels(self, Path(folder), role=role, levels=self.levels, schedule=schedule, **about)


def load_pixels(
    folder: Path, index: dict[str, Any], process: Process, metadata: dict[str, Any], dtype: str = "float32"
) -> Denoiser:
    """The pipeline in `folder`, whose model_index.json is `index`, as a denoiser of pixels, its network held in dtype.

    CheckpointError for one whose network works with more than a scheduler.
    """
    component = network_name(index)
    others = [name for name, part in index.items() if isinstance(part, list) and part[:1] not in ([], [None])]
    others = [name for name in others if name not in (component, "scheduler")]
    if others:
        raise CheckpointError(
            f"'{folder}' is a {index.get('_class_name')}, whose network works with its {', '.join(others)} and not on "
            f"pixels; give a pipeline of a network and a scheduler, or one that draws texts (docs/text_to_image.md)"
        )
    network = load_network(folder, component, index[component][1], "float32" if dtype == OWN else dtype)
    check_size(network.config, folder / component)
    kind = ConsistencyModel if KEY in metadata else Denoiser
    return kind(network, process, null_class=metadata.get("null_class"), metadata=metadata).eval()


def check_size(config: Any, where: Path) -> None:
    """CheckpointError for a network whose config does not say the size of its images: diffusers' default is none."""
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else (size,)
    if not all(type(side) is int and side > 0 for side in (*sides, channels)):
        raise CheckpointError(
            f"'{where / 'config.json'}' has the sample_size {size!r:.60} and in_channels {channels!r:.60}, and both "
            f"must be whole numbers (sample_size may be two, height and width); write there what it was trained on"
        )
