"""Making the attention layers of any network compute with one named kernel, and undoing it to the last bit.

A layer keeps its weights, its processor and its name; only its class changes, to a subclass whose `forward` runs
inside a context (as `torch.nn.utils.parametrize` does). So the choice belongs to the layer and to nothing global: it
holds when gradient checkpointing runs the layer again, it is copied with the network, and `torch.compile` sees an
ordinary `with`. Forward hooks would do for eager code, but a context opened in one hook and closed in another does
not compile (measured with torch 2.13).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

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


class _Chosen(nn.Module):
    """Mark of a layer whose kernel was chosen."""


class _ByKernel(_Chosen):
    """Runs the layer where PyTorch may use one kernel; for what that cannot take (a mask, another dtype) math."""

    _choice: tuple[SDPBackend, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(list(self._choice), set_priority=True):
            return super().forward(*args, **kwargs)


class _ByBackend(_Chosen):
    """Runs the layer with `scaled_dot_product_attention` sent to a backend of diffusers."""

    _choice: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Sent(self._choice):
            return super().forward(*args, **kwargs)


class _Sent(TorchFunctionMode):
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


# Equal choices share a class: a compiler that reuses its work for blocks of one class still may.
_MADE: dict[tuple[Any, ...], Any] = {}


def _choose(layer: nn.Module, mixin: type[_Chosen], value: tuple[SDPBackend, ...] | str) -> None:
    """Put `layer` into a subclass of its own class, under the same name, that runs inside the context of `mixin`."""
    cls = _plain(type(layer))
    key = (cls, mixin, value)
    if key not in _MADE:
        body = {"_choice": value, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _MADE[key] = type(cls.__name__, (mixin, cls), {**body, "__doc__": cls.__doc__})
    layer.__class__ = _MADE[key]


def _plain(cls: type[nn.Module]) -> Any:
    """The class a layer had before anything was chosen for it."""
    return next(base for base in cls.__mro__ if not issubclass(base, _Chosen))


def attention_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of diffusers that hold an attention processor, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if getattr(module, "processor", None) is not None and hasattr(module, "set_processor")
    }


def use_kernels(layers: dict[str, nn.Module], kernels: tuple[SDPBackend, ...]) -> None:
    """Let `layers` call scaled_dot_product_attention, with these kernels only, the first preferred; () leaves the
    choice to PyTorch.
    """
    _remember(layers)
    for layer in layers.values():
        _use_sdpa(layer)
        if kernels:
            _choose(layer, _ByKernel, kernels)


def use_backend(layers: dict[str, nn.Module], backend: str) -> None:
    """Let `layers` attend by a backend of diffusers: by its own switch where the processor has it, else by sending
    scaled_dot_product_attention there.
    """
    _remember(layers)
    for layer in layers.values():
        _use_sdpa(layer)
        if not _switch(layer, backend):
            _choose(layer, _ByBackend, backend)


def restore(network: nn.Module) -> None:
    """Undo `use_kernels` and `use_backend` in every layer: class, processor and backend are as they were."""
    for layer in network.modules():
        if isinstance(layer, _Chosen):
            layer.__class__ = _plain(type(layer))
        if BEFORE in layer.__dict__:
            processor, backend = layer.__dict__.pop(BEFORE)
            layer.set_processor(processor)  # type: ignore[operator]
            if hasattr(processor, "_attention_backend"):
                processor._attention_backend = backend


def _remember(layers: dict[str, nn.Module]) -> None:
    """Note processor and backend of every layer before any is changed: layers may share a processor."""
    for layer in layers.values():
        if hasattr(layer, "set_processor"):
            processor = layer.processor
            # In __dict__, for a processor with weights would else count as a second child of the layer.
            layer.__dict__.setdefault(BEFORE, (processor, getattr(processor, "_attention_backend", None)))


def _use_sdpa(layer: nn.Module) -> None:
    """Give a layer of diffusers a processor that calls scaled_dot_product_attention, if it has another."""
    from diffusers.models import attention_processor

    if _switch(layer, "native"):
        return
    wanted = FUSED.get(type(getattr(layer, "processor", None)).__name__)
    # Without the scale of 1 / sqrt(head dim) (`scale_qk=False`) the fused form would compute something else.
    if wanted and getattr(layer, "scale_qk", True):
        layer.set_processor(getattr(attention_processor, wanted)())  # type: ignore[operator]


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
