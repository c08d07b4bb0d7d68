"""Metrics of a model itself: what they may ask of it, and their entries beside those of its images."""

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffdistill import processes
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.devices import pick_device
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.figures import described
from diffdistill.evaluation.metrics import Metric, check_enough
from diffdistill.evaluation.probe import Probe
from diffdistill.evaluation.statistics import Statistics
from diffdistill.evaluation.subjects import Drawing, Subject
from diffdistill.sampling.generate import sample_batch


def check_reference(rows: Sequence[Metric], reference: ImageSet | Statistics | None) -> None:
    """ConfigError where one needs held-out images and there are none; DataError where there are too few."""
    for row in rows:
        if not row.compares:
            continue
        if not isinstance(reference, ImageSet):
            had = "holds statistics only" if reference is not None else "is missing"
            raise ConfigError(f"metric '{row.name}' looks at held-out images, and the reference {had}: give images")
        check_enough([row.name], len(reference), reference.name)


def probe_of(
    subject: Subject, drawing: Drawing, num_images: int | None, reference: ImageSet | None, other: str | None
) -> Probe:
    """What metrics may ask of a subject that is a model; the other half is loaded as it is."""
    assert subject.sampled is not None
    model, plan = subject.sampled

    def draw(noise: Tensor, places: Sequence[int]) -> Tensor:
        images = sample_batch(model, plan, drawing.seed, places, drawing.batch_size, start=noise)
        return images.clamp(-1, 1).cpu()

    twin = None if other is None else Denoiser.from_pretrained(other, pick_device(drawing.device), drawing.dtype)
    return Probe(
        subject.name, model, draw, num_images, drawing.seed, drawing.batch_size, other, twin, reference
    )  # fmt: skip


def probed(rows: Sequence[Metric], probe: Probe) -> dict[str, Any]:
    """Their result, in the form of an `Evaluator`'s; several processes wait for the first."""
    start = time.perf_counter()

    def measure() -> dict[str, Any]:
        entries: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for row in rows:
            assert row.probe is not None
            try:
                entries[row.name] = row.checked(row.probe(probe))
            except DataError as error:
                failed[row.name] = str(error)
        return {"metrics": entries, "warnings": probe.warnings, **({"failed": failed} if failed else {})}

    result = processes.lead(measure)
    counts = [entry.get("images", entry["n"]) for entry in result["metrics"].values()]
    protocol: dict[str, Any] = {"num_images": max(counts, default=0)}
    if probe.reference is not None and any(row.compares for row in rows):
        known = {"name": probe.reference.name, "fingerprint": probe.reference.fingerprint}
        protocol["reference"] = {**known, "num_images": len(probe.reference), "resize": None}
    if probe.other_name is not None:
        protocol["other_half"] = probe.other_name
    seconds = round(time.perf_counter() - start, 2)
    return result | {"figures": described(rows), "protocol": protocol, "seconds": seconds}


def joined(images: dict[str, Any] | None, model: dict[str, Any] | None) -> dict[str, Any]:
    """The result of a model's images, where they were measured, with that of the model itself, where it was asked.

    DataError where nothing could be measured.
    """
    parts = [part for part in (model, images) if part is not None]
    whole: dict[str, Any] = {"warnings": [text for part in parts for text in part["warnings"]]}
    for key in ("metrics", "figures", "protocol", "failed"):
        whole[key] = {name: value for part in parts for name, value in part.get(key, {}).items()}
    if whole["failed"] and not whole["metrics"]:
        raise DataError(next(iter(whole["failed"].values())))
    if not whole["failed"]:
        del whole["failed"]
    rest = {key: value for part in parts for key, value in part.items() if key not in whole}
    return rest | whole | {"seconds": round(sum(part["seconds"] for part in parts), 2)}
