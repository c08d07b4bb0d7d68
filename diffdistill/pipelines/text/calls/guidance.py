"""How a pipeline guides: a second pass, a number that its network is told, or not at all."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.pipelines.text.calls.gather import Gather, Unreadable
from diffdistill.pipelines.text.calls.leaves import Leaves, Path, count, row, same
from diffdistill.pipelines.text.calls.stage import SCALES, SHORT, Stage
from diffdistill.pipelines.text.calls.watch import Wish

SCALE = 4.0
# What a pipeline is given that guides only where it is given a negative prompt; Qwen-Image's own examples give this.
NOTHING = " "


@dataclass(frozen=True)
class Guidance:
    """kind: "two" passes, conditional and null; "told", the scale is an argument of the network; or "none".

    name: the argument of the call that the scale is given by. extra: w less that number: 0, or 1 where a pipeline adds
    s (D_cond - D_null) to D_cond. negative: the null text that must be given, None: there is one without. second:
    whether the null row comes after the conditional one. kept: whether the guided output is given the conditional's
    length, along the last axis of the scheduler's state. told: the argument of the network, its factor and offset.
    """

    kind: Literal["two", "told", "none"]
    name: str = ""
    extra: float = 0.0
    negative: str | None = None
    second: bool = False
    kept: bool = False
    told: Path = ()
    factor: float = 1.0
    offset: float = 0.0

    def arguments(self, scale: float, images: int, negative: str | None = None) -> dict[str, Any]:
        """Of the call, for guidance by w = scale."""
        text = self.negative if negative is None else negative
        return {self.name: scale - self.extra} | ({} if text is None else {"negative_prompt": [text] * images})

    def null_row(self, calls: list[Leaves], state: Path) -> Leaves:
        """Of the calls of one step for one image, guided: the null one's arguments, each with one row."""
        number = int(self.second)
        if len(calls) == 2:
            return {path: row(value, 0) if count(value) == 1 else value for path, value in calls[number].items()}
        whole = calls[0]
        return {
            path: row(value, number) if count(value) == count(whole[state]) else value for path, value in whole.items()
        }


def read_guidance(stage: Stage, plain: Leaves, place: Gather, outof: Gather, text: set[Path]) -> Guidance:
    """plain: the network's arguments without guidance, for `SHORT`, but the time; place, outof: the noise in the
    state, and the network's output in the noise's order; text: the paths that differ from prompt to prompt.
    """
    ways: list[tuple[str, str | None]] = [
        (name, None) for name in SCALES if name in stage.off or name in stage.parameters
    ]
    if "negative_prompt" in stage.parameters:
        ways += [(name, NOTHING) for name, _ in ways]
    for name, negative in ways:
        if stage.parameters[name].default is None and name not in stage.off:
            continue
        guidance = _tried(stage, plain, place, outof, text, name, negative)
        if guidance is not None:
            return guidance
    return Guidance("none")


def _tried(
    stage: Stage, plain: Leaves, place: Gather, outof: Gather, text: set[Path], name: str, negative: str | None
) -> Guidance | None:
    made: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int) -> Tensor:
        made.append(torch.randn(rows, *stage.output_shape, generator=generator).to(stage.pipeline.device))
        return made[-1]

    given: dict[str, Any] = {name: SCALE} | ({} if negative is None else {"negative_prompt": [negative]})
    wish = Wish(output=stage.outputs(drawn), until="stepped")
    step = stage.watch([SHORT], wish, **given).steps[0]
    outputs = torch.cat(made)
    if len(outputs) == 1:
        return _told(step.calls[0], plain, stage.state, name)
    if len(outputs) != 2:
        raise Unreadable(f"it asks its network {len(outputs)} times for an image")
    # The row that is told what the network is told without guidance is the conditional one.
    rough = [Guidance("two", second=second).null_row(step.calls, stage.state) for second in (False, True)]
    alike = [all(same(found[path], _first(plain[path])) for path in text) for found in rough]
    if sum(alike) != 1:
        raise Unreadable("its guided call does not hold what it tells its network without guidance")
    second = not alike[1]
    cond, null = (outof(outputs[number : number + 1].float()) for number in (1 - second, int(second)))
    extra, kept = _rule(cond, null, place.inverse()(step.handed.float()), place)
    return Guidance("two", name, extra, negative, second, kept)


def _first(value: Any) -> Any:
    return row(value, 0) if count(value) == 1 else value


def _told(found: Leaves, plain: Leaves, state: Path, name: str) -> Guidance | None:
    """The argument that follows the scale; None if there is none."""
    for path, before in plain.items():
        value = found[path]
        if path == state or not isinstance(value, Tensor) or same(value, before) or value.numel() != 1:
            continue
        start = 1.0
        factor = (float(value) - float(before)) / (SCALE - start)
        return Guidance("told", name, told=path, factor=factor, offset=float(before) - factor * start)
    return None


def _rule(cond: Tensor, null: Tensor, handed: Tensor, place: Gather) -> tuple[float, bool]:
    """`(extra, kept)` of a `Guidance`, from what the scheduler was handed for two outputs."""
    for extra in (0.0, 1.0):
        mixed = null + (SCALE + extra) * (cond - null)
        for kept in (False, True):
            value = lengthened(mixed, cond, place) if kept else mixed
            if float((value - handed).abs().max()) < 1e-4 * float(handed.abs().max()):
                return extra, kept
    raise Unreadable("it mixes the conditional and the null output by a rule that is not known")


def lengthened(guided: Tensor, cond: Tensor, place: Gather) -> Tensor:
    """The guided output with the conditional's length along the last axis of the scheduler's state."""
    one, other = place(guided), place(cond)
    return place.inverse()(one * (other.norm(dim=-1, keepdim=True) / one.norm(dim=-1, keepdim=True)))
