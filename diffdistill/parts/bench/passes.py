"""The passes that a step made through its networks, kept to be made again without anything else of the step.

A pass is what went into a network, the precision and whether a graph was kept, and how often a gradient came back to
what it gave. So guidance, LoRA, several steps, parts of a batch and recomputed activations are in it as they were; a
second derivative is not.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffdistill.sharding import Ended

Context = Callable[[], AbstractContextManager[Any]]


@dataclass
class Pass:
    """network(*inputs, **named), of which `inputs[0]` is the noised image.

    taps: layers whose outputs a discriminator reads. ended: broken off after the last of them. backward, of_taps: how
    often a gradient came to the output, and to the taps but not through the output.
    """

    network: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    context: Context
    taps: Sequence[nn.Module]
    graph: bool
    to_input: bool
    ended: bool = False
    backward: int = 0
    of_taps: int = 0
    gives: list[Tensor] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    def described(self) -> str:
        where = "input" if self.to_input else "weights"
        words = ["encoder" if self.ended else "forward"]
        for count, word in ((self.backward, "backward"), (self.of_taps, "encoder backward")):
            words += [word if count == 1 else f"{count} x {word}"] * (count > 0)
        return " + ".join(words) + (f" to the {where}" if len(words) > 1 else "") + f", {self.rows} rows"

    def again(self) -> None:
        """The pass and its ways back, with ones for the gradients that came."""
        inputs = self.inputs
        if self.to_input:
            inputs = (inputs[0].detach().requires_grad_(), *inputs[1:])
        returning = self.backward + self.of_taps > 0
        tapped: list[Tensor] = []
        output: list[Tensor] = []
        reading = _reading(self.taps, tapped, self.ended)
        with torch.set_grad_enabled(self.graph), self.context(), contextlib.suppress(Ended), reading:
            output.append(first_tensor(self.network(*inputs, **self.named)))
        if not returning:
            return
        ways = [output] * self.backward + [tapped] * self.of_taps
        for k, roots in enumerate(ways):
            gradients = [torch.ones_like(root) for root in roots]
            kept = k + 1 < len(ways)
            if self.to_input:
                torch.autograd.grad(roots, inputs[0], gradients, retain_graph=kept)
            else:
                torch.autograd.backward(roots, gradients, retain_graph=kept)


def first_tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output if isinstance(output, Tensor) else output.sample


@contextlib.contextmanager
def _reading(taps: Sequence[nn.Module], into: list[Tensor], ended: bool) -> Iterator[None]:
    """The outputs of the taps as they come; Ended after the last where the pass ends there."""

    def read(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        into.append(first_tensor(output))
        if ended and len(into) == len(taps):
            raise Ended

    handles = [layer.register_forward_hook(read) for layer in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recorder:
    """Within `with Recorder(...) as passes`, every outermost call of one of the networks becomes one of `passes`.

    networks: each with the layers that may be tapped in it. autocast: of the passes that are in half precision.
    """

    def __init__(self, networks: Sequence[tuple[nn.Module, Sequence[nn.Module]]], autocast: Context):
        self.networks, self.autocast = networks, autocast
        self.passes: list[Pass] = []
        self.open: Pass | None = None
        self.handles: list[Any] = []

    def __enter__(self) -> list[Pass]:
        for network, taps in self.networks:
            self.handles.append(network.register_forward_pre_hook(self._begin(network, taps), with_kwargs=True))
            self.handles.append(network.register_forward_hook(self._end(network), always_call=True))
            self.handles += [layer.register_forward_hook(self._tap(network)) for layer in taps]
        return self.passes

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, network: nn.Module, taps: Sequence[nn.Module]) -> Callable[..., None]:
        def begin(_network: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.open is not None:
                return  # adapters call the network that they are on
            half, graph = torch.is_autocast_enabled(inputs[0].device.type), torch.is_grad_enabled()
            context = self.autocast if half else contextlib.nullcontext
            there, them = tree_map(_detached, (inputs, named))
            self.open = Pass(network, there, them, context, taps, graph, graph and inputs[0].requires_grad)

        return begin

    def _tap(self, network: nn.Module) -> Callable[..., None]:
        def tap(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            seen = self.open
            if seen is not None and seen.network is network:
                seen.gives.append(first_tensor(output))

        return tap

    def _end(self, network: nn.Module) -> Callable[..., None]:
        def end(_network: nn.Module, _inputs: Any, output: Any) -> None:
            seen = self.open
            if seen is None or seen.network is not network:
                return
            self.open = None
            seen.ended = output is None  # always called, with nothing where the pass was broken off
            if seen.gives and seen.gives[-1].requires_grad:
                seen.gives[-1].register_hook(lambda _: _count(seen, "of_taps"))
            if not seen.ended and first_tensor(output).requires_grad:
                # What comes through the output goes on to the taps, and is no way back of their own.
                first_tensor(output).register_hook(lambda _: _count(seen, "backward"))
            seen.gives.clear()
            self.passes.append(seen)

        return end


def _count(seen: Pass, way: str) -> None:
    setattr(seen, way, getattr(seen, way) + 1)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def settled(passes: Sequence[Pass]) -> list[Pass]:
    """After the step: of the gradients that came to the taps, those are left that did not come through the output."""
    for each in passes:
        if each.backward and each.of_taps:
            each.of_taps -= each.backward
    return list(passes)
