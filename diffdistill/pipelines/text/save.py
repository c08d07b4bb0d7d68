"""A text-to-image student as a folder: the teacher's own pipeline with the student's network and its scheduler.

`pipe(prompt, **call)` with the `call` of diffdistill.json makes the images of `diffdistill sample`.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.denoiser import Denoiser
from diffdistill.files import PICKLES, write_json, write_text
from diffdistill.pipelines.folder import Card, forget_origin, read_json, write_model
from diffdistill.pipelines.scheduler_config import Schedule
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.lora import AdaptedNetwork
from diffdistill.pipelines.text.schedule import schedule_at, times_of


def save_text(
    model: Denoiser,
    adapter: Adapter,
    folder: Path,
    *,
    role: str,
    levels: Sequence[float],
    card: Card | None = None,
    schedule: Schedule | None = None,
    beside: Mapping[str, str] | None = None,
    **provenance: Any,
) -> None:
    """Write `folder`: the source's parts byte for byte, the network, and for a student the scheduler of its levels.

    schedule: in place of the stock one of these levels; beside: texts of further files by their names.
    A network with an adapter is written merged, and the adapter beside it in `lora/`, as `load_lora_weights` reads it.
    """
    if schedule is None and levels:
        schedule = schedule_at(adapter, model.process, levels)

    def write_parts(staged: Path) -> dict[str, Any]:
        copy_parts(adapter.source, staged, leave=(adapter.part, *(("scheduler",) if schedule else ())))
        write_network(model.network, adapter, staged, lora=staged / "lora")
        for name, text in (beside or {}).items():
            write_text(staged / name, text)
        index = forget_origin(staged / "model_index.json")
        metadata: dict[str, Any] = {"role": role, "levels": list(levels)}
        if schedule is not None:
            schedule.scheduler.save_pretrained(staged / "scheduler")
            name = type(schedule.scheduler).__name__
            write_json(staged / "model_index.json", index | {"scheduler": ["diffusers", name]})
            metadata["call"] = schedule.call | adapter.student_call()
            metadata |= {"timesteps": times_of(model.process, levels), "scheduler": name}
        return metadata | {"pipeline": index["_class_name"], "image_shape": list(model.picture_shape)}

    write_model(folder, write_parts, card, **provenance)


def write_network(network: Any, adapter: Adapter, staged: Path, *, lora: Path) -> None:
    """The network's part of a pipeline: an adapted one merged, and its adapter in the folder `lora`."""
    if isinstance(network, AdaptedNetwork):
        tensors, merged = network.tensors(), network.merged(adapter.source / adapter.part)
        if adapter.task is not None:  # one file that makes the student of the base
            tensors = adapter.task.joined(tensors)
            adapter.task.add_to(merged)
        _write_lora(lora, {f"{adapter.part}.{name}": tensor for name, tensor in tensors.items()})
        network = merged
    network.save_pretrained(staged / adapter.part, safe_serialization=True)
    forget_origin(staged / adapter.part / "config.json")


def _write_lora(folder: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})


def copy_parts(source: Path, target: Path, leave: Sequence[str]) -> None:
    """The parts that `model_index.json` names, but some; no pickles, no second precision (`*.fp16.safetensors`)."""

    def unwanted(_folder: str, names: list[str]) -> set[str]:
        variants = {name for name in names if name.count(".") > 1 and name.endswith((".safetensors", ".json"))}
        whole = {name for name in variants if name.endswith(".index.json") or "-of-" in name}
        other = {name for name in names if Path(name).suffix in {*PICKLES, ".msgpack", ".onnx", ".onnx_data", ".xml"}}
        return (variants - whole) | other

    for name, value in read_json(source / "model_index.json").items():
        part = source / name
        if isinstance(value, list) and part.is_dir() and name not in leave:
            shutil.copytree(part, target / name, ignore=unwanted)
    shutil.copyfile(source / "model_index.json", target / "model_index.json")
