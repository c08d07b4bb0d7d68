"""A run of a stock pipeline under watch: what it draws, what it hands to its network, its scheduler and its VAE."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffdistill.pipelines.text.calls.gather import Unreadable
from diffdistill.pipelines.text.calls.leaves import Leaves, leaves


class _Stop(Exception):
    """Enough was seen."""


class Output(tuple[Any, ...]):
    """What a network or a scheduler returns, with and without `return_dict`."""

    @property
    def sample(self) -> Any:
        return self[0]

    prev_sample = sample


@dataclass
class Step:
    """One step of the scheduler: the network's calls before it, and what it was handed."""

    calls: list[Leaves]
    outputs: list[Any]
    handed: Tensor
    time: float
    state: Tensor


@dataclass
class Seen:
    """drawn: shape of the first noise; noise: what was put there. calls, outputs: of the network, since the last of
    `steps`. times: arguments of the scheduler's `set_timesteps`. latents: what the VAE was given. images: what the
    pipeline returned.
    """

    drawn: tuple[int, ...] | None = None
    noise: Tensor | None = None
    calls: list[Leaves] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    times: dict[str, Any] = field(default_factory=dict)
    latents: Tensor | None = None
    images: Any = None


@dataclass(frozen=True)
class Wish:
    """What a watched run is given and where it ends.

    noise: in place of the first noise `(B, ...)`. output: of the network's call, by (its leaves, how many calls there
    were before it in this step), None: the network's own. final: in place of every state that the scheduler returns.
    until: "drawn", "asked" (before the network's call number `calls`), "stepped" (after `steps` steps), "decoded"
    (before the VAE) or "end".
    """

    noise: Tensor | None = None
    output: Callable[[Leaves, int], Any] | None = None
    final: Tensor | None = None
    until: str = "end"
    calls: int = 1
    steps: int = 1


def watched(pipeline: Any, part: str, prompts: Sequence[str], wish: Wish, **call: Any) -> Seen:
    """Run the pipeline for these prompts, no longer than wished. Raises Unreadable where the pipeline itself fails."""
    seen = Seen()
    network, scheduler = getattr(pipeline, part), pipeline.scheduler
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_put(network, "forward", _forward(network, seen, wish)))
        stack.enter_context(_put(scheduler, "step", _step(scheduler, seen, wish)))
        stack.enter_context(_put(scheduler, "set_timesteps", _set_timesteps(scheduler, seen)))
        stack.enter_context(_put(pipeline.vae, "decode", _decode(pipeline.vae, seen, wish)))
        stack.enter_context(_Noise(seen, wish))
        try:
            seen.images = pipeline(prompt=list(prompts), return_dict=False, **call)[0]
        except _Stop:
            pass
        except Unreadable:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:150]
            raise Unreadable(f"its own call for a prompt fails ({type(error).__name__}: {said})") from error
    return seen


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the pipeline's remarks on how it is called, which are not the user's calls; gradients are not taken."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _put(home: Any, name: str, function: Any) -> Iterator[None]:
    """A function in the place of a method, for a while."""
    before = vars(home).get(name)
    setattr(home, name, function)
    try:
        yield
    finally:
        delattr(home, name)
        if before is not None:
            setattr(home, name, before)


class _Noise(TorchFunctionMode):
    """Sees the first noise that is drawn, and puts another in its place."""

    def __init__(self, seen: Seen, wish: Wish):
        super().__init__()
        self.seen, self.wish = seen, wish

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is not torch.randn or self.seen.drawn is not None or made.dim() < 3:
            return made
        self.seen.drawn = tuple(made.shape)
        if self.wish.until == "drawn":
            raise _Stop
        noise = made if self.wish.noise is None else self.wish.noise
        if noise.numel() != made.numel():
            raise Unreadable("it draws noise of another shape for several prompts than for one")
        self.seen.noise = noise.to(made).reshape(made.shape)
        return self.seen.noise


def _forward(network: Any, seen: Seen, wish: Wish) -> Callable[..., Any]:
    forward = network.forward
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def spy(*args: Any, **kwargs: Any) -> Any:
        found = leaves(_named(signature, args, kwargs))
        seen.calls.append(found)
        if wish.until == "asked" and len(seen.calls) == wish.calls:
            raise _Stop
        made = None if wish.output is None else wish.output(found, len(seen.calls) - 1)
        output = Output([made]) if made is not None else forward(*args, **kwargs)
        seen.outputs.append(output[0])
        return output

    return spy


def _step(scheduler: Any, seen: Seen, wish: Wish) -> Callable[..., Any]:
    step = scheduler.step
    signature = inspect.signature(step)

    @functools.wraps(step)
    def spy(*args: Any, **kwargs: Any) -> Any:
        handed, time, state = list(_named(signature, args, kwargs).values())[:3]
        seen.steps.append(Step(seen.calls, seen.outputs, handed, float(time), state))
        seen.calls, seen.outputs = [], []
        if wish.until == "stepped" and len(seen.steps) == wish.steps:
            raise _Stop
        if wish.final is None:
            return step(*args, **kwargs)
        final = wish.final.to(state).reshape(-1, *state.shape[1:])
        return Output([final, final])  # the second is x0, which PixArt's pipeline takes where there is one step

    return spy


def _set_timesteps(scheduler: Any, seen: Seen) -> Callable[..., Any]:
    set_timesteps = scheduler.set_timesteps
    signature = inspect.signature(set_timesteps)

    @functools.wraps(set_timesteps)
    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.times = _named(signature, args, kwargs)
        return set_timesteps(*args, **kwargs)

    return spy


def _decode(vae: Any, seen: Seen, wish: Wish) -> Callable[..., Any]:
    decode = vae.decode

    @functools.wraps(decode)
    def spy(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.latents = z
        if wish.until == "decoded":
            raise _Stop
        return decode(z, *args, **kwargs)

    return spy


def _named(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, in the order of the signature; those of `**kwargs` among the others."""
    bound = signature.bind(*args, **kwargs).arguments
    rest = [name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD]
    more = bound.pop(rest[0], {}) if rest else {}
    return {**bound, **more}
