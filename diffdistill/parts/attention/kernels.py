"""Which kernel computes attention: chosen by name, and then looked at, for the name alone proves nothing.

On UNets diffusers' own `set_attention_backend` changes nothing and says nothing (0.42: `AttnProcessor2_0` calls
scaled_dot_product_attention whatever the backend). Here every layer is told (`attention_layers.py`), one forward pass
is watched (`attention_probe.py`), and its result is compared with that of PyTorch's math kernel.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffdistill.errors import ConfigError
from diffdistill.parts.attention.layers import attention_layers, restore, use_backend, use_kernels
from diffdistill.parts.attention.names import attention_name
from diffdistill.parts.attention.probe import Seen, example, observe

MATH = (SDPBackend.MATH,)
KERNELS = {
    "sdpa-flash": (SDPBackend.FLASH_ATTENTION, *MATH),
    "sdpa-efficient": (SDPBackend.EFFICIENT_ATTENTION, *MATH),
    "sdpa-cudnn": (SDPBackend.CUDNN_ATTENTION, *MATH),
    "sdpa-math": MATH,
}
# Backends of diffusers that call scaled_dot_product_attention, so that its kernels are seen; "" means any.
NATIVE = {
    "native": "",
    "_native_cudnn": "cudnn",
    "_native_efficient": "efficient",
    "_native_flash": "flash",
    "_native_math": "math",
}
# Largest |output - output by math| / |output by math| of a sound kernel, wide enough for TF32 and deep networks: a
# broken kernel is off by order one. sage rounds queries and keys to 8 bits.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}
SAGE_TOLERANCE = 2e-1

Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Attention:
    """What a network attends by: the policy asked for, and the kernels seen to run, the most frequent first.

    layers: how many layers attend; 0 for a network without attention, or with a form of its own.
    """

    policy: str
    kernels: tuple[str, ...]
    layers: int

    def __str__(self) -> str:
        return f"{self.policy}: {', '.join(self.kernels) or 'no attention layer'}"


def set_attention(
    network: nn.Module,
    policy: str = "auto",
    *,
    run: Callable[[], Tensor] | None = None,
    context: Context = nullcontext,
) -> Attention:
    """Let a network attend by `policy`, and check in a forward pass of one image that it does.

    - auto: the network as it is; every output is the same to the last bit as without this call.
    - sdpa: every layer calls scaled_dot_product_attention, PyTorch picks the kernel.
    - sdpa-flash, sdpa-efficient, sdpa-cudnn, sdpa-math: that kernel of it. A later call that the kernel cannot take
      (a mask, another dtype) goes to math.
    - xformers, or another backend of diffusers: through diffusers' dispatcher, on UNets too.

    `auto` and `sdpa` fall back to math, with one warning, where PyTorch's choice fails or is wrong. A kernel asked for
    by name that does not run is a ConfigError that says what does, and the network is then as it was.

    run: calls the network once (default: one image, as a UNet of diffusers is called); context: the autocast it will
    be used in. To be called before `torch.compile`, on the device and in the dtype of use.
    """
    try:
        attention_name(policy)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    reset_attention(network)
    trial = _Trial(network, policy, run or example(network), context)
    try:
        return trial.settle()
    except BaseException:
        reset_attention(network)
        raise


def reset_attention(network: nn.Module) -> None:
    """Undo `set_attention`: classes, processors and backends are those from before it, and so is every bit."""
    restore(network)


class _Trial:
    """One policy on one network: reference by math, then the policy, then what was seen of it."""

    def __init__(self, network: nn.Module, policy: str, run: Callable[[], Tensor], context: Context):
        self.network, self.policy, self.run, self.context = network, policy, run, context
        self.layers = attention_layers(network)

    def settle(self) -> Attention:
        if self.policy != "auto":
            use_kernels(self.layers, ())
        try:
            with sdpa_kernel(list(MATH)):
                exact, seen = self.look()
        except Exception as error:
            if self.policy == "auto":  # which changes nothing, and must stop nothing
                return Attention(self.policy, ("unknown",), 0)
            raise ConfigError(
                f"attention '{self.policy}' cannot be tried on this network ({_in_words(error)}); leave it at auto"
            ) from error
        if not seen:
            if self.policy in ("auto", "sdpa"):
                return Attention(self.policy, (), 0)
            raise ConfigError(f"attention '{self.policy}' finds no attention layer in this network; leave it at auto")
        modules = dict(self.network.named_modules())
        self.layers |= {call.layer: modules[call.layer] for call in seen}
        count = len({call.layer for call in seen})
        kernels, problem = self.attempt(self.policy, exact)
        if problem is None:
            return Attention(self.policy, kernels, count)
        if self.policy in ("auto", "sdpa"):
            warnings.warn(f"attention '{self.policy}' falls back to PyTorch's math kernel: {problem}", stacklevel=3)
            use_kernels(self.layers, MATH)
            return Attention(self.policy, ("math",), count)
        here = f"{next(self.network.parameters()).device.type}, {str(self.dtype()).removeprefix('torch.')}"
        running = [name for name in KERNELS if self.attempt(name, exact)[1] is None]
        raise ConfigError(
            f"attention '{self.policy}' does not run on this network here ({here}): {problem}; "
            f"use {', '.join(['sdpa', *running])}"
        )

    def attempt(self, policy: str, exact: Tensor) -> tuple[tuple[str, ...], str | None]:
        """Apply a policy: the kernels that run, and what is wrong with them."""
        try:
            if policy in KERNELS:
                use_kernels(self.layers, KERNELS[policy])
            elif policy not in ("auto", "sdpa"):
                _require(policy)
                use_backend(self.layers, policy)
            output, seen = self.look()
        except Exception as error:  # a missing package, device or shape: each backend has its own exception
            return (), _in_words(error)
        kernels = tuple(kernel for kernel, _ in Counter(call.kernel for call in seen).most_common())
        problem = _unlike(policy, kernels)
        if problem is None and not self.near(output, exact):
            problem = "its results differ from those of the math kernel"
        return kernels or (policy,), problem

    def look(self) -> tuple[Tensor, list[Seen]]:
        with self.context():
            return observe(self.network, self.run)

    def dtype(self) -> torch.dtype:
        here = next(self.network.parameters())
        with self.context():
            autocast = torch.is_autocast_enabled(here.device.type)
            return torch.get_autocast_dtype(here.device.type) if autocast else here.dtype

    def near(self, output: Tensor, exact: Tensor) -> bool:
        if not bool(exact.isfinite().all()):  # nothing to compare with, and whoever uses the network will say so
            return True
        tolerance = SAGE_TOLERANCE if "sage" in self.policy else TOLERANCE[self.dtype()]
        return bool((output - exact).double().norm() <= tolerance * exact.double().norm())


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _unlike(policy: str, kernels: tuple[str, ...]) -> str | None:
    """What is wrong with these kernels of scaled_dot_product_attention under that policy."""
    wanted = NATIVE.get(policy, policy.removeprefix("sdpa-") if policy in KERNELS else "")
    if wanted and set(kernels) != {wanted}:
        return f"PyTorch takes {', '.join(kernels) or 'none'}"
    if policy not in (*KERNELS, *NATIVE, "auto", "sdpa") and kernels:
        return f"layers still call PyTorch's {', '.join(kernels)}"
    return None


def _require(backend: str) -> None:
    """diffusers' own check of the packages that a backend needs; raises what diffusers raises."""
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend(backend):
        pass
