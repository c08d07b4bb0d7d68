"""A text-to-image student as a folder: the teacher's own pipeline, with a stock scheduler that visits its levels.

`pipe(prompt, **call)` with the `call` of diffdistill.json makes the images of `diffdistill sample`. Stock pipelines
begin with unit noise, so the student's first input is x = `process.start_scale(sigma_1)` z, for which the network sees
z itself; every later one is x0 + sigma_k eps.
"""

import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.files import PICKLES, new_folder, sha256, write_json
from diffdistill.pipelines.folder import METADATA, read_json
from diffdistill.pipelines.schedule import LCM_TIME_SCALE, Schedule
from diffdistill.pipelines.text.adapters import Adapter
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.lora import AdaptedNetwork
from diffdistill.process import Flow, Process

# Below, a signal of a schedule counts as none ("zero terminal SNR").
NO_SIGNAL = 1e-10


def stock_schedule(
    adapter: Adapter, process: Process, steps: int, timesteps: Sequence[float] | None = None
) -> Schedule:
    """The schedule of a student of `steps` steps; timesteps: times of the network, None for the scheduler's own.

    Diffusion: `LCMScheduler` at whole steps, evenly spaced from the last one. Flow: `FlowMatchEulerDiscreteScheduler`
    with fresh noise in every step, from t = 1 to the teacher's shift of 1 / K. Raises ConfigError for timesteps that
    are not `steps` descending times of the network, and for a schedule that ends without signal and predicts epsilon.
    """
    if timesteps is not None:
        _check(timesteps, steps, adapter)
    if isinstance(process, Flow):
        return _flow(adapter, process, steps, timesteps)
    return _diffusion(adapter, process, steps, timesteps)


def _check(timesteps: Sequence[float], steps: int, adapter: Adapter) -> None:
    if len(timesteps) != steps:
        raise ConfigError(
            f"student.steps is {steps} and student.timesteps has {len(timesteps)} values; give one time a step"
        )
    if any(low >= high for high, low in pairwise(timesteps)):
        raise ConfigError(f"student.timesteps {list(timesteps)} must descend, from the noisiest input to the cleanest")
    last = adapter.scheduler.config.num_train_timesteps
    if timesteps[0] > last or timesteps[-1] <= 0:
        raise ConfigError(f"student.timesteps {list(timesteps)} must lie between 0 and {last}, 0 left out")


def _diffusion(adapter: Adapter, process: Any, steps: int, timesteps: Sequence[float] | None) -> Schedule:
    from diffusers import LCMScheduler

    teacher = adapter.scheduler
    scheduler = LCMScheduler.from_config(
        teacher.config,
        original_inference_steps=teacher.config.num_train_timesteps,
        timestep_scaling=LCM_TIME_SCALE,
        clip_sample=False,
        thresholding=False,
    )
    last = int((scheduler.alphas_cumprod > NO_SIGNAL).sum()) - 1
    if last + 1 < len(scheduler.alphas_cumprod) and process.kind == "epsilon":
        raise ConfigError(
            "the teacher's schedule ends without signal (zero terminal SNR) and it predicts epsilon, from which no "
            "image can be read there; take a teacher that predicts v"
        )
    scheduler.set_timesteps(steps)
    stock = [int(t) for t in scheduler.timesteps]
    wanted = [round(t) for t in timesteps] if timesteps is not None else [min(t, last) for t in stock]
    if wanted[0] > last:
        raise ConfigError(f"student.timesteps begins with {wanted[0]}, and the last step with a signal is {last}")
    call = {"num_inference_steps": steps} if wanted == stock else {"timesteps": wanted}
    return Schedule(scheduler, _levels(process, wanted), call)


def _flow(adapter: Adapter, process: Flow, steps: int, timesteps: Sequence[float] | None) -> Schedule:
    from diffusers import FlowMatchEulerDiscreteScheduler

    teacher = adapter.scheduler.config
    settings: dict[str, Any] = {
        "num_train_timesteps": teacher.num_train_timesteps,
        "stochastic_sampling": True,
        "use_dynamic_shifting": False,
    }
    if timesteps is not None:
        sigmas = [t / teacher.num_train_timesteps for t in timesteps]
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, **settings)
        return Schedule(scheduler, _levels(process, timesteps), {"sigmas": sigmas})
    shift, sigmas_given = adapter.shift(), adapter.default_sigmas(steps)
    # Left alone, the scheduler would spread its steps down to t = 1 / 1000.
    last = shift / (steps + shift - 1) if sigmas_given is None and steps > 1 else None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=last, **settings)
    scheduler.set_timesteps(steps, sigmas=sigmas_given)
    return Schedule(scheduler, _levels(process, scheduler.timesteps.tolist()), {"num_inference_steps": steps})


def _levels(process: Any, timesteps: Sequence[float]) -> tuple[float, ...]:
    return tuple(process.level_at(torch.tensor(timesteps, dtype=torch.float64)).tolist())


def schedule_of(model: TextDenoiser, levels: Sequence[float]) -> Schedule:
    """The stock schedule that visits these levels: the scheduler's own, if it is, else one that is told the times."""
    stock = stock_schedule(model.adapter, model.process, len(levels))
    if torch.allclose(torch.tensor(stock.levels), torch.tensor(tuple(levels)), rtol=1e-5):
        return stock
    times = times_of(model.process, levels)
    return stock_schedule(model.adapter, model.process, len(levels), times)


def times_of(process: Any, levels: Sequence[float]) -> list[float]:
    sigma = torch.tensor(tuple(levels))
    return process.to_network(sigma[:, None, None, None], sigma)[1].tolist()


Card = Callable[[dict[str, Any]], str]


def save_text_denoiser(
    model: TextDenoiser,
    folder: Path,
    *,
    role: str,
    levels: Sequence[float],
    card: Card | None = None,
    **provenance: Any,
) -> None:
    """Write `folder`: the source's parts byte for byte, the network, and for a student the scheduler of its levels.

    A network with an adapter is written merged, and the adapter beside it in `lora/`, as `load_lora_weights` reads it.
    """
    adapter, network = model.adapter, model.network
    source = adapter.source / adapter.part
    schedule = schedule_of(model, levels) if levels else None
    with new_folder(folder) as staged:
        copy_parts(adapter.source, staged, leave=(adapter.part, *(("scheduler",) if schedule else ())))
        if isinstance(network, AdaptedNetwork):
            _write_lora(staged / "lora", {f"{adapter.part}.{name}": t for name, t in network.tensors().items()})
            network = network.merged(source)
        network.save_pretrained(staged / adapter.part, safe_serialization=True)
        index = read_json(staged / "model_index.json")
        metadata: dict[str, Any] = {"role": role, "levels": list(levels)}
        if schedule is not None:
            schedule.scheduler.save_pretrained(staged / "scheduler")
            name = type(schedule.scheduler).__name__
            index["scheduler"] = ["diffusers", name]
            metadata["call"] = schedule.call | adapter.student_call()
            metadata |= {"timesteps": times_of(model.process, levels), "scheduler": name}
        _write(staged / "model_index.json", index)
        # The folder's own names must not depend on where it was trained.
        _write(staged / adapter.part / "config.json", read_json(staged / adapter.part / "config.json"))
        metadata |= {
            "pipeline": index["_class_name"],
            "image_shape": list(model.picture_shape),
            "sha256": {str(f.relative_to(staged)): sha256(f) for f in sorted(staged.rglob("*.safetensors"))},
            **provenance,
        }
        if card is not None:
            (staged / "README.md").write_text(card(metadata), "utf-8")
        _write(staged / METADATA, metadata)


def _write(file: Path, value: dict[str, Any]) -> None:
    kept = {key: entry for key, entry in value.items() if key != "_name_or_path"}
    write_json(file, kept)


def _write_lora(folder: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
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
