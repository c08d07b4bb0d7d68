"""Looking at which attention kernel really runs: one small forward pass, every operator watched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from diffdistill.parts.attention import names

Kernels = tuple[SDPBackend, ...]

MATH: Kernels = (SDPBackend.MATH,)
KERNELS: dict[str, Kernels] = {
    f"sdpa-{kernel}": (getattr(SDPBackend, f"{kernel.upper()}_ATTENTION"), *MATH) if kernel != "math" else MATH
    for kernel in names.KERNELS
}
# The operators below scaled_dot_product_attention, one for each kernel; math is a composite of which the safe softmax
# is the part that nothing else uses.
OPERATORS = {f"aten::_scaled_dot_product_{kernel}_attention": kernel for kernel in names.KERNELS} | {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_fused_attention_overrideable": "overrideable",
    "aten::_scaled_dot_product_attention_math_for_mps": "math",
    "aten::_safe_softmax": "math",
}


class Seen(NamedTuple):
    """One call of a kernel of scaled_dot_product_attention: by which layer, which kernel."""

    layer: str
    kernel: str


class _Watch(TorchDispatchMode):
    def __init__(self, current: Callable[[], str]):
        super().__init__()
        self.current = current
        self.seen: list[Seen] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = OPERATORS.get(func._schema.name)
        if kernel is not None:
            self.seen.append(Seen(self.current(), kernel))
        return func(*args, **(kwargs or {}))


def observe(network: nn.Module, run: Callable[[], Any]) -> tuple[Any, list[Seen]]:
    """`run()`, which calls the network, and the kernels it called, each with the innermost layer around it.

    In evaluation mode, without gradients; no random number is drawn and nothing of the network changes.
    """
    layers = {module: name for name, module in network.named_modules()}
    stack: list[str] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        stack.append(layers.get(module, stack[-1] if stack else ""))

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        with _evaluating(network), torch.no_grad(), _Watch(lambda: stack[-1] if stack else "") as watch:
            output = run()
    finally:
        for handle in handles:
            handle.remove()
    return output, watch.seen


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every layer's own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def example(network: nn.Module) -> Callable[[], Any]:
    """A forward pass of one image for a UNet of diffusers, or any network called in the same way.

    `network(sample, timestep, class_labels=...)`, with a text and what SDXL adds to it where the configuration asks
    for them. The numbers come from a generator of their own, so the run's random numbers stay what they are.
    """

    def run() -> Any:
        sample, time, conditions = _example_inputs(network)
        return network(sample, time, **conditions, return_dict=False)[0]

    return run


def _example_inputs(network: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Sample `(1, C, H, W)`, time `(1,)` and conditions, on the device and in the dtype of the network."""
    config = network.config
    weight = next(network.parameters())
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(weight)

    size = config.sample_size or 32
    height, width = (size, size) if isinstance(size, int) else size
    conditions: dict[str, Any] = {}
    if getattr(config, "num_class_embeds", None) or getattr(config, "num_embeds_ada_norm", None):
        conditions["class_labels"] = torch.zeros(1, dtype=torch.int64, device=weight.device)
    text = getattr(config, "encoder_hid_dim", None) or getattr(config, "cross_attention_dim", None)
    if text:
        conditions["encoder_hidden_states"] = noise(1, 8, text if isinstance(text, int) else text[0])
    if getattr(config, "addition_embed_type", None) == "text_time":
        ids = 6
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        conditions["added_cond_kwargs"] = {"text_embeds": noise(1, pooled), "time_ids": noise(1, ids)}
    return noise(1, config.in_channels, height, width), torch.ones(1, device=weight.device), conditions


def usable_kernels() -> dict[str, Any]:
    """Of `doctor`: the type of device and numbers, the kernel PyTorch takes, those that run and agree with float64."""
    where = {"device": "cuda", "dtype": torch.float16} if torch.cuda.is_available() else {}
    q, k, v = torch.randn(3, 1, 2, 64, 32, **where)  # type: ignore[call-overload]
    exact = ((q.double() @ k.double().mT) / 32**0.5).softmax(-1) @ v.double()
    sound = []
    for name in names.KERNELS:
        try:
            with sdpa_kernel(KERNELS[f"sdpa-{name}"][0]):
                if (F.scaled_dot_product_attention(q, k, v).double() - exact).abs().max() < 1e-2:
                    sound.append(name)
        except Exception:  # a kernel that is not built, or not for this device
            continue
    taken = SDPBackend(torch._fused_sdp_choice(q, k, v)).name.removesuffix("_ATTENTION").lower()
    return {"dtype": str(q.dtype).removeprefix("torch."), "taken": taken, "kernels": sound}
