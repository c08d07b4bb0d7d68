"""Which kernel computes attention: chosen by name, and then observed, for the name alone proves nothing.

On UNets diffusers' own `set_attention_backend` changes nothing and says nothing (0.42: `AttnProcessor2_0` calls
scaled_dot_product_attention whatever the backend). Here every layer is set, one forward pass is watched operator by
operator, and its result is compared with that of PyTorch's math kernel.

A layer that is set keeps its weights, its processor and its name; only its class changes, to a subclass whose
`forward` runs inside a context (as `torch.nn.utils.parametrize` does). So the choice belongs to the layer and to
nothing global: it holds when gradient checkpointing runs the layer again, it is copied with the network, and
`torch.compile` sees an ordinary `with`. (A context opened in one hook and closed in another does not compile.)
"""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel
from torch.overrides import TorchFunctionMode

from diffdistill.errors import ConfigError
from diffdistill.parts.attention import names
from diffdistill.parts.attention.probe import KERNELS, MATH, Kernels, Seen, example, observe

Context = Callable[[], AbstractContextManager[Any]]

# Largest |output - output by math| / |output by math| of a sound kernel, wide enough for TF32 and deep networks: a
# broken kernel is off by order one. sage rounds queries and keys to 8 bits.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}
SAGE_TOLERANCE = 2e-1
# Processors of diffusers that compute softmax themselves or call xformers, and the one that calls
# scaled_dot_product_attention in their place.
FUSED = {
    "AttnProcessor": "AttnProcessor2_0",
    "SlicedAttnProcessor": "AttnProcessor2_0",
    "XFormersAttnProcessor": "AttnProcessor2_0",
    "AttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "SlicedAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersJointAttnProcessor": "JointAttnProcessor2_0",
}
BEFORE = "_attention_before"


# ---- choosing


@dataclass(frozen=True)
class Attention:
    """What a network attends by: the policy asked for, and the kernels seen to run, the most frequent first.

    layers: how many layers attend; 0 for a network without attention, or with a form of its own.

    >>> from diffdistill import load_model
    >>> from diffdistill.parts.attention.kernels import set_attention
    >>> seen: Attention = set_attention(load_model("builtin:fashion_mnist_teacher").network, "sdpa-math")
    >>> str(seen), seen.layers
    ('sdpa-math: math', 4)
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

    >>> from diffdistill import load_model
    >>> teacher = load_model("builtin:fashion_mnist_teacher")
    >>> set_attention(teacher.network, "sdpa-math").kernels
    ('math',)
    >>> set_attention(teacher.network, "sdpa-flsh")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: attention 'sdpa-flsh' is unknown; did you mean 'sdpa-flash'?
    """
    try:
        names.attention_name(policy)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    reset_attention(network)
    try:
        return _Trial(network, policy, run or example(network), context).settle()
    except BaseException:
        reset_attention(network)
        raise


def reset_attention(network: nn.Module) -> None:
    """Undo `set_attention`: classes, processors and backends are those from before it, and so is every bit.

    >>> from diffdistill import load_model
    >>> from diffdistill.parts.attention.kernels import set_attention
    >>> teacher = load_model("builtin:fashion_mnist_teacher")
    >>> x, sigma, labels = torch.randn(2, 1, 28, 28), torch.tensor([0.5, 5.0]), torch.tensor([0, 9])
    >>> before = teacher(x, sigma, labels)
    >>> seen = set_attention(teacher.network, "sdpa-math")
    >>> reset_attention(teacher.network)
    >>> torch.equal(teacher(x, sigma, labels), before)
    True
    """
    for layer in network.modules():
        if isinstance(layer, _Chosen):
            layer.__class__ = _plain(type(layer))
        if BEFORE in layer.__dict__:
            processor, backend = layer.__dict__.pop(BEFORE)
            layer.set_processor(processor)  # type: ignore[operator]
            if hasattr(processor, "_attention_backend"):
                processor._attention_backend = backend


class _Trial:
    """One policy on one network: reference by math, then the policy, then what was seen of it."""

    def __init__(self, network: nn.Module, policy: str, run: Callable[[], Tensor], context: Context):
        self.network, self.policy, self.run, self.context = network, policy, run, context
        self.lenient = policy in ("auto", "sdpa")
        # The layers of diffusers that hold a processor; those that are seen to attend are added.
        self.layers = {
            name: module
            for name, module in network.named_modules()
            if getattr(module, "processor", None) is not None and hasattr(module, "set_processor")
        }

    def settle(self) -> Attention:
        if self.policy != "auto":
            _use(self.layers, ())
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
            if self.lenient:
                return Attention(self.policy, (), 0)
            raise ConfigError(f"attention '{self.policy}' finds no attention layer in this network; leave it at auto")
        modules = dict(self.network.named_modules())
        attending = {call.layer: modules[call.layer] for call in seen}
        self.layers |= attending
        kernels, problem = self.attempt(self.policy, exact)
        if problem is None:
            return Attention(self.policy, kernels, len(attending))
        if self.lenient:
            warnings.warn(f"attention '{self.policy}' falls back to PyTorch's math kernel: {problem}", stacklevel=3)
            _use(self.layers, MATH)
            return Attention(self.policy, ("math",), len(attending))
        place = f"{next(self.network.parameters()).device.type}, {str(self.dtype()).removeprefix('torch.')}"
        running = [name for name in KERNELS if self.attempt(name, exact)[1] is None]
        raise ConfigError(
            f"attention '{self.policy}' does not run on this network here ({place}): {problem}; "
            f"use {', '.join(['sdpa', *running])}"
        )

    def attempt(self, policy: str, exact: Tensor) -> tuple[tuple[str, ...], str | None]:
        """Apply a policy: the kernels that run, and what is wrong with them."""
        try:
            if policy in KERNELS:
                _use(self.layers, KERNELS[policy])
            elif policy not in ("auto", "sdpa"):
                _require(policy)
                _use(self.layers, policy)
            output, seen = self.look()
        except Exception as error:  # a missing package, device or shape: each backend has its own exception
            return (), _in_words(error)
        kernels = tuple(kernel for kernel, _ in Counter(call.kernel for call in seen).most_common())
        problem = _mismatch(policy, kernels)
        if problem is None and not self.near(output, exact):
            problem = "its results differ from those of the math kernel"
        return kernels or (policy,), problem

    def look(self) -> tuple[Tensor, list[Seen]]:
        with self.context():
            return observe(self.network, self.run)

    def dtype(self) -> torch.dtype:
        weight = next(self.network.parameters())
        with self.context():
            autocast = torch.is_autocast_enabled(weight.device.type)
            return torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype

    def near(self, output: Tensor, exact: Tensor) -> bool:
        if not bool(exact.isfinite().all()):  # nothing to compare with, and whoever uses the network will say so
            return True
        tolerance = SAGE_TOLERANCE if "sage" in self.policy else TOLERANCE[self.dtype()]
        return bool((output - exact).cpu().double().norm() <= tolerance * exact.cpu().double().norm())


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _mismatch(policy: str, kernels: tuple[str, ...]) -> str | None:
    """What is wrong with these kernels of scaled_dot_product_attention under that policy."""
    named = names.kernel_of(policy)
    if named and set(kernels) != {named}:
        return f"PyTorch takes {', '.join(kernels) or 'none'}"
    if policy not in ("auto", *names.SDPA, *names.NATIVE) and kernels:
        return f"layers still call PyTorch's {', '.join(kernels)}"
    return None


def _require(backend: str) -> None:
    """diffusers' own check of the packages that a backend needs; raises what diffusers raises."""
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend(backend):
        pass


# ---- layers that compute with one named kernel


class _Chosen(nn.Module):
    """A layer whose kernels were chosen (for what the first cannot take, the others), or a backend of diffusers."""

    _choice: Kernels | str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        choice = self._choice
        if isinstance(choice, str):
            with _Dispatched(choice):
                return super().forward(*args, **kwargs)
        with sdpa_kernel(list(choice), set_priority=True):
            return super().forward(*args, **kwargs)


class _Dispatched(TorchFunctionMode):
    """scaled_dot_product_attention, heads first, as diffusers' `dispatch_attention_fn`, tokens first."""

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(*args, **(kwargs or {}))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`(B, heads, L, D)` in and out."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        out = dispatch_attention_fn(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            attn_mask, dropout_p, is_causal, scale, enable_gqa, backend=self.backend,
        )  # fmt: skip
        return out.transpose(1, 2)


def _use(layers: dict[str, nn.Module], choice: Kernels | str) -> None:
    """Let `layers` call scaled_dot_product_attention, with these kernels only, the first preferred (() leaves the
    choice to PyTorch), or attend by that backend of diffusers: by its own switch where the processor has it.
    """
    for layer in layers.values():  # all before any is changed: layers may share a processor
        if hasattr(layer, "set_processor"):
            processor = layer.processor
            # In __dict__, for a processor with weights would else count as a second child of the layer.
            layer.__dict__.setdefault(BEFORE, (processor, getattr(processor, "_attention_backend", None)))
    for layer in layers.values():
        _call_sdpa(layer)
        if choice and not (isinstance(choice, str) and _switch(layer, choice)):
            layer.__class__ = _subclass(type(layer), choice)


# Equal choices share a class: a compiler that reuses its work for blocks of one class still may.
_SUBCLASSES: dict[tuple[type, Kernels | str], Any] = {}


def _subclass(cls: type[nn.Module], choice: Kernels | str) -> Any:
    """A subclass of a layer's own class, under the same name, that runs with `choice`."""
    cls = _plain(cls)
    if (cls, choice) not in _SUBCLASSES:
        body = {"_choice": choice, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _SUBCLASSES[cls, choice] = type(cls.__name__, (_Chosen, cls), {**body, "__doc__": cls.__doc__})
    return _SUBCLASSES[cls, choice]


def _plain(cls: type[nn.Module]) -> Any:
    """The class a layer had before anything was chosen for it."""
    return next(base for base in cls.__mro__ if not issubclass(base, _Chosen))


def _call_sdpa(layer: nn.Module) -> None:
    """Give a layer of diffusers a processor that calls scaled_dot_product_attention, if it has another."""
    from diffusers.models import attention_processor

    if _switch(layer, "native"):
        return
    fused = FUSED.get(type(getattr(layer, "processor", None)).__name__)
    # Without the scale of 1 / sqrt(head dim) (`scale_qk=False`) the fused form would compute something else.
    if fused and getattr(layer, "scale_qk", True):
        layer.set_processor(getattr(attention_processor, fused)())  # type: ignore[operator]


def _switch(layer: nn.Module, backend: str) -> bool:
    """Switch a processor of diffusers that goes through its dispatcher; False where it does not.

    `network.set_attention_backend` would also change the default of every other model in the process.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    processor: Any = getattr(layer, "processor", None)
    if not hasattr(processor, "_attention_backend"):
        return False
    processor._attention_backend = AttentionBackendName(backend)
    return True
