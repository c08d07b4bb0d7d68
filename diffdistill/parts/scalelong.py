"""ScaleLong (2310.13545): the long skips of a UNet or U-ViT, scaled while it trains; no forward is rewritten.

    skip_i <- kappa_i skip_i,   i = 1 the shallowest skip, the first that the encoder makes ... N the deepest

    cs      kappa_i = kappa^(i-1)        section 4.1. sum of kappa_i^2 < 1 / (1 - kappa^2), where unscaled skips give
                                         N: the paper bounds the oscillation of hidden features by it (theorem 3.1)
    rsqrt2  kappa_i = 1 / sqrt(2)
    ls      kappa_i = g(skip_i) = top * sigmoid(W2 relu(W1 z + b1) + b2), one small network for all skips, z the means
                                         of the skip's channels or tokens (section 4.2; see `LearnedScale`)

What it does depends on what reads concat(hidden, skip):

- U-ViT: a linear map reads it, and the paper's theory holds. In a small U-ViT of depth 24, kappa 0.7 halves the
  oscillation of hidden features (`benchmarks/claims/scalelong_oscillation.py`).
- UNets of diffusers: a GroupNorm reads it, and divides the scale out again (how far: docs/scalelong.md). So there
  `pre_norm`, which is what the paper describes, scales the shortcuts and little else, except where a group holds
  hidden and skip channels together. `position="post_norm"`, which is ours and not in the paper, scales the skip's
  channels behind that norm and before the shortcut, so that the scale reaches both branches.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.parts.scalelong_places import (
    ScaleArgument,
    ScaleChannels,
    find_arrivals,
    find_sites,
    is_concatenated_plainly,
)

Mode = Literal["cs", "ls", "rsqrt2"]
Position = Literal["pre_norm", "post_norm"]
Start = Literal["identity", "reference"]
# In config.json, and the submodule that holds the gates: two names, for diffusers looks an attribute up in the config
# before the submodules.
CONFIG_KEY, MODULE = "scalelong", "skip_scale"
DESCRIPTORS = 32  # numbers that describe a skip to the calibration network, whatever its channels
REDUCTION, TOKEN_REDUCTION = 4, 16  # of the hidden layer; 16 is the paper's, for a few hundred tokens


class Settings(NamedTuple):
    """What is written to config.json. `kappa` is read by `cs`, `start` by `ls`."""

    mode: Mode
    kappa: float
    position: Position
    start: Start


def apply_scalelong(
    network: Any, mode: Mode = "cs", kappa: float = 0.7, position: Position = "pre_norm", start: Start = "identity"
) -> None:
    """Scale the long skips of `network` from now on: before training it, and before `torch.compile`.

    mode: `cs`, `rsqrt2` or `ls` (module docstring); kappa in (0, 1], for `cs`: the deepest of N skips is multiplied by
    kappa^(N-1), so take 0.5 to 0.95 for six skips and 0.9 or more for the twelve of Stable Diffusion; position:
    `post_norm` is for UNets and ours; start, for `ls`: gates of exactly 1, or near 1/2 as in the authors' code.

    The setting is kept in the network's config and the gates among its weights, so `save_pretrained` saves both;
    `load_scaled` and `Denoiser.from_pretrained` restore them. Stock diffusers drops them and says so in its log.

    Raises ConfigError for values that are not allowed, a network without long skips, a compiled one, or one that has
    ScaleLong. Warns if the network was loaded and is not in training mode: its weights do not know the scale.

    >>> from diffusers import UNet2DModel
    >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    >>> unet = UNet2DModel(sample_size=8, norm_num_groups=4, layers_per_block=2, **blocks)
    >>> apply_scalelong(unet, "cs", kappa=0.5)
    >>> unet.skip_scale.factors
    (1.0, 0.5, 0.25)
    """
    settings = Settings(mode, kappa, position, start)
    _check(settings)
    _refuse_compiled(network)
    if is_scaled(network):
        raise ConfigError(f"this {type(network).__name__} has ScaleLong already; call remove_scalelong first")
    install(network, settings)
    changes = mode == "rsqrt2" or (mode == "cs" and kappa < 1) or (mode == "ls" and start == "reference")
    if changes and network.config.get("_name_or_path") and not network.training:
        warnings.warn(
            f"ScaleLong '{mode}' changes what a trained {type(network).__name__} computes: train it with the scale, "
            "or call remove_scalelong",
            stacklevel=2,
        )


def remove_scalelong(network: Any, *, fold: bool = False) -> None:
    """Take ScaleLong off: hooks, gates and config entry go, the network is bit for bit what it was.

    fold: first multiply constant factors into the weights, so that the plain network computes what the scaled one did
    and any diffusers can run it. Exact where a linear map or `post_norm` carries the scale.

    Raises ConfigError if there is no ScaleLong on it, or if it cannot be folded (`ls`; UNets with `pre_norm`).

    >>> from diffdistill.models import UViT, apply_scalelong
    >>> network = UViT(sample_size=4, hidden_size=16, depth=2, num_attention_heads=2)
    >>> apply_scalelong(network)
    >>> remove_scalelong(network)
    >>> hasattr(network, "skip_scale"), "scalelong" in network.config
    (False, False)
    """
    _refuse_compiled(network)
    if not is_scaled(network):
        raise ConfigError(f"this {type(network).__name__} has no ScaleLong to remove; apply_scalelong puts it on")
    scale = network.get_submodule(MODULE)
    if fold:
        _fold(network, scale, Settings(**network.config[CONFIG_KEY]))
    for handle in scale.handles:
        handle.remove()
    delattr(network, MODULE)
    # A FrozenDict refuses deletion; its owner may have another.
    network._internal_dict = type(network._internal_dict)(
        {key: value for key, value in network.config.items() if key != CONFIG_KEY}
    )


def is_scaled(network: nn.Module) -> bool:
    return MODULE in dict(network.named_children())


def install(network: Any, settings: Settings) -> None:
    """Hooks, gates and config entry, without a word about pretrained weights."""
    arrivals = find_arrivals(network)
    count = sum(len(arrival.indices) for arrival in arrivals)
    scale: Any
    if settings.mode == "ls":
        scale = LearnedScale(settings.start, tokens=getattr(network, "num_tokens", None))
    else:
        scale = ConstantScale(constant_factors(settings.mode, settings.kappa, count))
    if settings.position == "pre_norm":
        scale.handles = [
            arrival.module.register_forward_pre_hook(ScaleArgument(scale, arrival), with_kwargs=True)
            for arrival in arrivals
        ]
    else:
        sites = find_sites(network, arrivals)
        scale.handles = [site.resnet.norm1.register_forward_hook(ScaleChannels(scale, site)) for site in sites]
        scale.handles += [
            site.resnet.conv_shortcut.register_forward_pre_hook(ScaleChannels(scale, site)) for site in sites
        ]
    network.add_module(MODULE, scale.to(next(network.parameters()).device).train(network.training))
    network.register_to_config(**{CONFIG_KEY: settings._asdict()})


def load_scaled(cls: Any, folder: str | Path) -> Any:
    """A network of class `cls` with ScaleLong from the folder that its `save_pretrained` wrote, in evaluation mode.

    Raises CheckpointError for a network that was saved without it, which `cls.from_pretrained` reads.

    >>> import tempfile
    >>> from diffdistill.models import UViT, apply_scalelong
    >>> network = UViT(sample_size=4, hidden_size=16, depth=4, num_attention_heads=2)
    >>> apply_scalelong(network, kappa=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     network.save_pretrained(folder)
    ...     load_scaled(UViT, folder).skip_scale.factors
    (1.0, 0.5)
    """
    config = cls.load_config(folder)
    if (settings := config.pop(CONFIG_KEY, None)) is None:
        raise CheckpointError(f"'{folder}' has no ScaleLong in its config.json; read it with from_pretrained")
    network = cls.from_config(config)
    install(network, Settings(**settings))
    files = sorted(Path(folder).glob("*.safetensors"))
    network.load_state_dict({key: value for file in files for key, value in load_file(file).items()})
    network.register_to_config(_name_or_path=str(folder))
    return network.eval()


@torch.no_grad()
def _fold(network: Any, scale: Any, settings: Settings) -> None:
    arrivals = find_arrivals(network)
    plain = all(is_concatenated_plainly(arrival.module) for arrival in arrivals)
    if settings.mode == "ls" or not (plain or settings.position == "post_norm"):
        raise ConfigError(
            f"ScaleLong '{settings.mode}' at '{settings.position}' cannot be folded into the weights of "
            f"{type(network).__name__}; constants can, where a linear map reads the skip or the position is post_norm"
        )
    if plain:
        for arrival in arrivals:
            weight = arrival.module.skip_linear.weight
            weight[:, weight.shape[1] // 2 :] *= scale.factors[arrival.indices[0] - 1]
        return
    for site in find_sites(network, arrivals):
        factor, channels = scale.factors[site.number - 1], site.channels
        site.resnet.norm1.weight[-channels:] *= factor
        site.resnet.norm1.bias[-channels:] *= factor
        site.resnet.conv_shortcut.weight[:, -channels:] *= factor


def _check(settings: Settings) -> None:
    for name, annotation in (("mode", Mode), ("position", Position), ("start", Start)):
        allowed = annotation.__args__  # type: ignore[attr-defined]
        if getattr(settings, name) not in allowed:
            raise ConfigError(f"ScaleLong {name} {getattr(settings, name)!r} is unknown; choose {', '.join(allowed)}")
    if not 0 < settings.kappa <= 1:  # NaN too
        raise ConfigError(f"kappa must be in (0, 1], got {settings.kappa}; 0.7 is a start, 0.9 for twelve skips")


def _refuse_compiled(network: Any) -> None:
    # Compiled code does not look whether hooks changed, so either call would silently do nothing.
    if hasattr(network, "_orig_mod") or network._compiled_call_impl is not None:
        raise ConfigError("the network is compiled; put ScaleLong on, or take it off, before torch.compile")


# ---- what multiplies a skip


def constant_factors(mode: str, kappa: float, count: int) -> tuple[float, ...]:
    """kappa_1 ... kappa_N: kappa^(i-1) for `cs` (2310.13545, section 4.1), 1/sqrt(2) for `rsqrt2`.

    i = 1 is the shallowest skip, the first that the encoder makes and the last that the decoder takes.
    """
    return tuple(kappa**i for i in range(count)) if mode == "cs" else (math.sqrt(0.5),) * count


class ConstantScale(nn.Module):
    """skip_i <- kappa_i skip_i; no parameters, nothing kept for the backward pass."""

    def __init__(self, factors: Sequence[float]):
        super().__init__()
        self.handles: list[RemovableHandle] = []
        self.factors = tuple(factors)

    def gate(self, skip: Tensor, number: int) -> Tensor | float:
        return self.factors[number - 1]


class LearnedScale(nn.Module):
    """skip_i <- g(skip_i) skip_i, g = top * sigmoid(W2 relu(W1 z + b1) + b2), one network for all skips (section 4.2).

    tokens None: z is the mean of every channel, `(B, C)`, averaged into 32 neighbourhoods so that skips of any width
    share the network, and one gate a sample comes out. tokens L: the paper's form for U-ViT: z is the mean of every
    token, `(B, L)`, and every token has its gate.

    start "identity": W2 = 0, b2 = 0 and top = 2, so all gates are exactly 1. start "reference": top = 1 and torch's
    own start, so gates begin near 1/2, as in the authors' code. Computed in float32.
    """

    def __init__(self, start: str, tokens: int | None = None):
        super().__init__()
        self.handles: list[RemovableHandle] = []
        self.tokens = tokens
        self.top = 2.0 if start == "identity" else 1.0
        width = tokens or DESCRIPTORS
        self.squeeze = nn.Linear(width, max(1, width // (TOKEN_REDUCTION if tokens else REDUCTION)))
        self.excite = nn.Linear(self.squeeze.out_features, tokens or 1)
        if start == "identity":
            nn.init.zeros_(self.excite.weight)
            nn.init.zeros_(self.excite.bias)

    def gate(self, skip: Tensor, number: int) -> Tensor:
        """`(B, 1, ..., 1)`, or `(B, L, 1)` for tokens, of a skip `(B, C, H, W)` or `(B, L, D)`."""
        with torch.autocast(skip.device.type, enabled=False):
            z = self.describe(skip.float())
            z = linear(z, self.squeeze.weight.float(), self.squeeze.bias.float()).relu()
            gate = self.top * linear(z, self.excite.weight.float(), self.excite.bias.float()).sigmoid()
        return gate.reshape(gate.shape + (1,) * (skip.dim() - 2)).to(skip.dtype)

    def describe(self, skip: Tensor) -> Tensor:
        if self.tokens:
            return skip.mean(-1)
        if skip.dim() == 3:  # tokens in a number not known beforehand: the channels are last
            return resample(skip.mean(1), DESCRIPTORS)
        return resample(skip.flatten(2).mean(2), DESCRIPTORS)


def resample(z: Tensor, count: int) -> Tensor:
    """`(B, C)` -> `(B, count)` by means over neighbouring channels, a channel cut by a border shared between its two
    sides.

    Adaptive pooling does nearly this, but its gradient is not deterministic on a GPU.
    """
    fine = count // math.gcd(z.shape[1], count)
    return z.unsqueeze(2).expand(-1, -1, fine).flatten(1).unflatten(1, (count, -1)).mean(2)
