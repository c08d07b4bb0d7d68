"""The network of a pipeline: its class, its weights, and a trainable copy of it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffdistill.borrowed import built
from diffdistill.errors import CheckpointError
from diffdistill.last_layer import last_layer
from diffdistill.loading import check_finite, load_whole
from diffdistill.parts.scalelong import CONFIG_KEY, Settings, install, load_scaled
from diffdistill.pipelines.folder import read_json


def load_network(folder: Path, component: str, class_name: str, dtype: str = "float32") -> nn.Module:
    """dtype: what it is held in, but for `EXACT` parts of it; see `held_in`."""
    return held_in(_load(folder, component, class_name), getattr(torch, dtype))


def _load(folder: Path, component: str, class_name: str) -> nn.Module:
    cls = network_class(class_name)
    if cls is None:
        raise CheckpointError(
            f"'{folder}' wants the network class {class_name}, which this diffusers lacks; upgrade diffusers"
        )
    if not list((folder / component).glob("*.safetensors")):
        raise CheckpointError(f"'{folder / component}' holds no safetensors weights; pickled weights are never loaded")
    if CONFIG_KEY not in read_json(folder / component / "config.json"):
        return load_whole(cls, folder / component, low_cpu_mem_usage=False)
    try:
        network = load_scaled(cls, folder / component)
    except Exception as error:
        raise CheckpointError(
            f"'{folder / component}' could not be loaded ({error}); make or fetch the model folder again"
        ) from error
    check_finite(network, folder / component)
    return network


# Layers that turn the level into waves, by their classes' names: bfloat16 would move their frequencies by a 256th.
EXACT = ("GaussianFourierProjection", "FourierNoise")


def held_in(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network in a precision, one tensor after the other; the layer that writes its output, which computes in
    float32 (`last_layer.float32_output`), and its `EXACT` layers stay float32, not rounded.
    """
    last = last_layer(network)
    exact = [layer for layer in network.modules() if layer is last or type(layer).__name__ in EXACT]
    states = [{name: value.float().clone() for name, value in layer.state_dict().items()} for layer in exact]
    nn.Module.to(network, dtype)
    for layer, state in zip(exact, states, strict=True):
        layer.float().load_state_dict(state)
    return network


def network_class(name: str) -> Any:
    """The network class of that name, diffusers' own or one of `diffdistill.models`; None if neither has it."""
    import diffusers

    import diffdistill.models

    home = diffdistill.models if name in diffdistill.models.__all__ else diffusers
    cls = getattr(home, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin) else None


def clone_network(network: Any, num_classes: int | None, borrowing: bool = False) -> Any:
    """A trainable copy of a network, without what a student and a critic are never asked: the embedding of the null
    class, and the variances that some networks predict beside the noise.

    borrowing: whether its weights lie in the memory of the network's until they have their `own` (`borrowed`); those
    of networks that use a weight twice never do.
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

    def make() -> Any:
        made = type(network).from_config(config)
        if scale is not None:
            install(made, Settings(**scale))
        return made

    state = dict(network.state_dict())
    if "class_embedding.weight" in state and num_classes is not None:
        state["class_embedding.weight"] = state["class_embedding.weight"][:num_classes]
    if learned_variance:
        state |= {name: tensor[:images] for name, tensor in state.items() if name.startswith("conv_out.")}
    if borrowing and not _uses_weights_twice(network):
        return built(make, state)
    copy = make()
    copy.load_state_dict(state)
    return copy.to(next(network.parameters()).device)  # float32: built from the config


def network_name(index: dict[str, Any]) -> str:
    """What model_index.json calls the network; CheckpointError where it names none."""
    component = next((name for name in ("unet", "transformer") if _is_part(index.get(name))), None)
    if component is None:
        raise CheckpointError(
            "model_index.json names no unet and no transformer; give a pipeline that has one "
            "(docs/text_to_image.md: which adapters there are, and how to write one)"
        )
    return component


def _is_part(entry: Any) -> bool:
    """Whether an entry of model_index.json names a package and a class."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _uses_weights_twice(network: nn.Module) -> bool:
    return sum(1 for _ in network.named_parameters(remove_duplicate=False)) > sum(1 for _ in network.parameters())
