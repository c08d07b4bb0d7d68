"""Copies of networks that lend each other the memory of their weights until they are sharded, or until it is known
that they are not: of student, critic and average that begin alike, a process then holds one, and later a part of each.

No torch is imported before it is needed.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

BORROWED = "_diffdistill_borrowed"  # marks a weight that lies in the memory of another


def borrowing(module: "nn.Module") -> "nn.Module":
    """A deep copy of a module whose weights lie in the memory of the module's own.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> copy = borrowing(layer)
    >>> copy.weight is layer.weight, copy.weight.data_ptr() == layer.weight.data_ptr()
    (False, True)
    """
    lent: dict[int, Any] = {id(weight): _borrowed(weight, weight.requires_grad) for weight in module.parameters()}
    return copy.deepcopy(module, lent)


def built(make: "Callable[[], nn.Module]", state: "Mapping[str, Tensor]") -> "nn.Module":
    """The network that `make()` builds, its weights in the memory of the tensors of `state`: none of its own is taken.

    Of weights in another precision a copy is made; buffers are the network's own. Randomness goes on as if the network
    had been built as ever. RuntimeError where `state` is of another network.
    """
    with _weightless():
        network = make()
    weights = dict(network.named_parameters())
    network.load_state_dict(
        {name: value.to(weights[name].dtype) if name in weights else value.clone() for name, value in state.items()},
        assign=True,
    )
    for weight in network.parameters():
        setattr(weight, BORROWED, True)
    return network


def own(network: "nn.Module") -> "nn.Module":
    """The network itself, whose weights lie in memory of their own from here on."""
    for weight in network.parameters():
        if getattr(weight, BORROWED, False):
            weight.data = weight.data.clone()
            delattr(weight, BORROWED)
    return network


def _borrowed(weight: "Tensor", trained: bool) -> "nn.Parameter":
    from torch import nn

    parameter = nn.Parameter(weight.detach(), trained)
    setattr(parameter, BORROWED, True)
    return parameter


@contextlib.contextmanager
def _weightless() -> "Iterator[None]":
    """Within, modules are built without memory for their weights; what would be drawn for them is drawn and let go."""
    import torch
    from torch import nn
    from torch.utils._python_dispatch import TorchDispatchMode

    class Drawing(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _types: Any, given: Any = (), named: Any = None) -> Any:
            first = given[0] if given else None
            if isinstance(first, torch.Tensor) and first.is_meta and RANDOM in function.tags:
                function(torch.empty(first.shape, dtype=first.dtype), *given[1:], **(named or {}))
                return first
            return function(*given, **(named or {}))

    def truncated(tensor: Any, *given: Any, **named: Any) -> Any:
        # torch draws nothing here for a tensor without memory, and else as often as the numbers want it.
        truncate(torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor, *given, **named)
        return tensor

    def registered(module: nn.Module, name: str, weight: Any) -> None:
        register(module, name, weight)
        if weight is not None:
            module._parameters[name] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)

    RANDOM = torch.Tag.nondeterministic_seeded
    register, truncate = nn.Module.register_parameter, nn.init.trunc_normal_
    nn.Module.register_parameter, nn.init.trunc_normal_ = registered, truncated  # type: ignore[assignment, method-assign]
    try:
        with Drawing():
            yield
    finally:
        nn.Module.register_parameter, nn.init.trunc_normal_ = register, truncate  # type: ignore[method-assign]
