"""Model folders in diffusers format: read any, write the ones stock diffusers samples from.

Every weights file is named with its SHA-256 in `diffdistill.json`: safetensors carries no checksum, so without it one
flipped bit would load in silence.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from diffdistill import files
from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError
from diffdistill.files import PICKLES, new_folder, sha256, write_json
from diffdistill.parts.scalelong import CONFIG_KEY, Settings, install, load_scaled
from diffdistill.pipelines.consistency import KEY, SCHEDULER, ConsistencySchedule, described, kept_schedule
from diffdistill.pipelines.schedule import LCM_TIME_SCALE, Schedule, stock_schedule
from diffdistill.process import EDM, VP, Flow, Process

if TYPE_CHECKING:
    from diffdistill.denoiser import Denoiser

METADATA = "diffdistill.json"


def weights_digest(folder: Path) -> str:
    """One SHA-256 over all weights of a model folder: its identity in caches and protocols."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def locate(model: str) -> Path:
    """The local folder of MODEL: a path, `builtin:NAME`, or a Hub id (downloaded to the Hub's own cache)."""
    if is_builtin(model):
        return resolve_builtin(model)
    path = Path(model)
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"'{model}' is a pickle, which can run code when opened; give a diffusers folder with safetensors weights "
            f"('diffdistill convert' makes one of EDM's files)"
        )
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or model.count("/") != 1 or model.startswith("."):
        raise CheckpointError(
            f"model '{model}' is not a diffusers folder; give a folder with model_index.json, builtin:NAME or a Hub id"
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise CheckpointError(
            f"model '{model}' is no local folder and could not be fetched from the Hub ({type(error).__name__}); "
            f"check the name and the network"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder; CheckpointError where it is absent or damaged."""
    try:
        return files.read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"model folder '{path.parent}' has no {path.name}; it is incomplete, make or fetch it again"
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not readable JSON ({error}); make or fetch the model folder again"
        ) from error


def load_denoiser(model: str) -> "Denoiser":
    """Read a model folder; see `Denoiser.from_pretrained`."""
    from diffdistill.denoiser import Denoiser

    folder = locate(model)
    index = read_json(folder / "model_index.json")
    component = next((name for name in ("unet", "transformer") if name in index), None)
    if component is None:
        raise CheckpointError(
            f"'{folder}/model_index.json' names no unet and no transformer; give a pipeline that has one "
            "(docs/text_to_image.md: which adapters there are, and how to write one)"
        )
    metadata = read_json(folder / METADATA) if (folder / METADATA).exists() else {}
    for name, expected in metadata.get("sha256", {}).items():
        if not (folder / name).is_file():
            raise CheckpointError(f"model folder '{folder}' lacks {name}; make or fetch it again")
        if sha256(folder / name) != expected:
            raise CheckpointError(
                f"'{folder / name}' is damaged: its SHA-256 is not the one in {METADATA}; make or fetch it again"
            )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        metadata = described(scheduler, metadata)
        process = process_of(scheduler, metadata.get("role", "teacher"))
    except CheckpointError as error:
        raise CheckpointError(f"'{folder}': {error}") from error
    metadata.setdefault("path", str(model))
    if any(name.startswith("text_encoder") for name in index):
        from diffdistill.pipelines.text.denoiser import load_text_denoiser

        return load_text_denoiser(folder, str(index.get("_class_name")), model, process, metadata)
    others = [name for name, part in index.items() if isinstance(part, list) and part[0] is not None]
    others = [name for name in others if name not in (component, "scheduler")]
    if others:
        raise CheckpointError(
            f"'{folder}' is a {index.get('_class_name')}, whose network works with its {', '.join(others)} and not on "
            f"pixels; give a pipeline of a network and a scheduler, or one that draws texts (docs/text_to_image.md)"
        )
    network = _load_network(folder, component, index[component][1])
    return Denoiser(network, process, null_class=metadata.get("null_class"), metadata=metadata).eval()


def _load_network(folder: Path, component: str, class_name: str) -> nn.Module:
    cls = network_class(class_name)
    if cls is None:
        raise CheckpointError(
            f"'{folder}' wants the network class {class_name}, which this diffusers lacks; upgrade diffusers"
        )
    if not list((folder / component).glob("*.safetensors")):
        raise CheckpointError(f"'{folder / component}' holds no safetensors weights; pickled weights are never loaded")
    try:
        if CONFIG_KEY in read_json(folder / component / "config.json"):
            return load_scaled(cls, folder / component)
        return cls.from_pretrained(folder / component, use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:
        raise CheckpointError(
            f"'{folder / component}' could not be loaded ({error}); make or fetch the model folder again"
        ) from error


def network_class(name: str) -> Any:
    """The network class of that name, diffusers' own or one of `diffdistill.models`; None if neither has it."""
    import diffusers

    import diffdistill.models

    home = diffdistill.models if name in diffdistill.models.__all__ else diffusers
    cls = getattr(home, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin) else None


# What schedulers of DDPM's kind may predict; their other settings change steps, not what the output means.
VP_KINDS = ("epsilon", "v_prediction", "sample")
# Few-step models, whose D is a consistency function: only those of this package are read.
FEW_STEP = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")


def process_of(scheduler: dict[str, Any], role: str = "teacher") -> Process:
    """The noise process that a diffusers scheduler config describes, of a network in that role.

    CheckpointError for a scheduler, or a setting, under which a network's output means something that is not read.
    Settings that choose a sampler's steps alone (timestep_spacing, shift, clip_sample, thresholding, Karras' levels
    ...) are left out: D(x, sigma) does not depend on them.
    """
    name, kind = scheduler.get("_class_name", ""), scheduler.get("prediction_type", "epsilon")
    if name in FEW_STEP and scheduler.get("timestep_scaling") != LCM_TIME_SCALE:
        raise CheckpointError(
            f"{name} belongs to a few-step model, whose D(x_t, sigma) is not the posterior mean E[x0 | x_t]; of those "
            f"only students made by diffdistill and {SCHEDULER} are read"
        )
    if name == SCHEDULER:
        return ConsistencySchedule.of(scheduler).process(role)
    if name.startswith("EDM"):
        return _edm(scheduler, kind)
    if name.startswith("FlowMatch"):
        if scheduler.get("invert_sigmas"):
            raise CheckpointError(
                f"{name} has invert_sigmas, time running from data to noise, which is not read; give a flow whose "
                f"time is 0 at the data"
            )
        return Flow(float(scheduler.get("num_train_timesteps", 1000)))
    return _vp(name, scheduler, kind)


def _edm(scheduler: dict[str, Any], kind: str) -> EDM:
    if kind != "epsilon":
        raise CheckpointError(f"{scheduler['_class_name']} with prediction type '{kind}' is not read; use epsilon")
    usual = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    scale, low, high = (scheduler.get(key, value) for key, value in usual.items())
    return EDM(scale, 1.0, low, high)


def _vp(name: str, scheduler: dict[str, Any], kind: str) -> VP:
    import diffusers

    cls = getattr(diffusers, name, None)
    try:
        made: Any = cls.from_config(scheduler) if cls is not None else None
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"scheduler '{name}' could not be made ({said}); mend its config") from error
    if not hasattr(made, "alphas_cumprod"):
        raise CheckpointError(
            f"scheduler '{name}' is unknown; EDM, CMStochasticIterative, FlowMatch and DDPM-like schedulers are read"
        )
    if kind == "flow_prediction" or scheduler.get("use_flow_sigmas"):
        raise CheckpointError(
            f"{name} samples a flow (prediction_type '{kind}', use_flow_sigmas), whose schedule is not that of its "
            f"betas; give the folder a FlowMatchEulerDiscreteScheduler"
        )
    if kind not in VP_KINDS:
        raise CheckpointError(f"prediction type '{kind}' of {name} is not read; it must be {', '.join(VP_KINDS)}")
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise CheckpointError(
            f"{name} has timestep_type '{scheduler['timestep_type']}', which tells the network ln(sigma) / 4 in place "
            f"of a training step; only discrete is read"
        )
    return VP(made.alphas_cumprod, kind)


Card = Callable[[dict[str, Any]], str]


def save_denoiser(
    denoiser: "Denoiser",
    folder: Path,
    *,
    role: str,
    levels: Sequence[float],
    card: Card | None = None,
    **provenance: Any,
) -> None:
    """Write `folder` as a stock `ConsistencyModelPipeline`; see `Denoiser.save_pretrained`."""
    from diffusers import ConsistencyModelPipeline

    own = kept_schedule(denoiser, role, levels)
    levels = levels if own is None else denoiser.levels
    if own is None:
        schedule = stock_schedule(denoiser.process, levels)
    else:
        schedule = Schedule(own.scheduler(), tuple(levels), {"num_inference_steps": 1})
    home = type(denoiser.network).__module__
    with new_folder(folder) as staged:
        pipeline = ConsistencyModelPipeline(unet=denoiser.network, scheduler=schedule.scheduler)
        pipeline.save_pretrained(staged, safe_serialization=True)
        # The folder's own name must not depend on where it was trained.
        config = staged / "unet" / "config.json"
        settings = {k: v for k, v in read_json(config).items() if k != "_name_or_path"}
        write_json(config, settings)
        weights = {str(f.relative_to(staged)): sha256(f) for f in sorted(staged.rglob("*.safetensors"))}
        metadata = {
            "role": role,
            "levels": list(levels),
            "null_class": denoiser.null_class,
            "num_classes": denoiser.num_classes,
            "image_shape": list(denoiser.image_shape),
            # The module that stock diffusers must find imported, where the network is not one of its own.
            "network_module": None if home.startswith("diffusers.") else home,
            **({CONFIG_KEY: settings[CONFIG_KEY]} if CONFIG_KEY in settings else {}),
            **({KEY: asdict(own)} if own is not None else {}),
            "sha256": weights,
            **provenance,
        }
        if levels:
            metadata["call"] = schedule.call
        if card is not None:
            (staged / "README.md").write_text(card(metadata), "utf-8")
        write_json(staged / METADATA, metadata)


def clone_network(network: Any, num_classes: int | None) -> Any:
    """A trainable copy of a network, without what a student and a critic are never asked: the embedding of the null
    class, and the variances that some networks predict beside the noise.
    """
    config = dict(network.config)
    images = config.get("in_channels")
    learned_variance = hasattr(network, "conv_out") and images and config.get("out_channels") == 2 * images
    config.pop("_use_default_values", None)  # counts values given by position as defaults, and loses them
    scale = config.pop(CONFIG_KEY, None)
    if num_classes is not None and config.get("num_class_embeds"):
        config["num_class_embeds"] = num_classes
    if learned_variance:
        config["out_channels"] = images
    copy = type(network).from_config(config)
    if scale is not None:
        install(copy, Settings(**scale))
    state = dict(network.state_dict())
    if "class_embedding.weight" in state and num_classes is not None:
        state["class_embedding.weight"] = state["class_embedding.weight"][:num_classes]
    if learned_variance:
        state |= {name: tensor[:images] for name, tensor in state.items() if name.startswith("conv_out.")}
    copy.load_state_dict(state)
    return copy.to(next(network.parameters()).device)  # float32: built from the config
