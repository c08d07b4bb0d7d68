"""Whether the replay of a pipeline's call gives what the pipeline itself computes and draws."""

from typing import Any

import torch
from torch import Tensor

from diffdistill.pipelines.text.calls.gather import Unreadable
from diffdistill.pipelines.text.calls.reading import Reading
from diffdistill.pipelines.text.calls.stage import LONG, SHORT
from diffdistill.pipelines.text.calls.watch import Wish

TOLERANCE = 1e-4
STEPS = 2
GUIDANCE = 3.0


@torch.no_grad()
def check(adapter: Any, reading: Reading) -> None:
    """Run the pipeline for two prompts in two steps, guided if it can be, and replay every step and the decoding.

    Raises Unreadable where a step, or an image, differs by more than 1e-4 of its largest value; in half precision by
    more than its rounding.
    """
    prompts = [SHORT, LONG]
    guidance = reading.guidance
    more = guidance.arguments(GUIDANCE, len(prompts)) if guidance.kind != "none" else {}
    noise = torch.randn(len(prompts), *reading.shape, generator=torch.Generator().manual_seed(1))
    seen = reading.stage.watch(prompts, Wish(noise), STEPS, **more)
    dtype = next(adapter.network.parameters()).dtype
    allowed = max(TOLERANCE, 16 * torch.finfo(dtype).eps)
    before, adapter.guidance = adapter.guidance, GUIDANCE
    try:
        for number, step in enumerate(seen.steps):
            given = step.calls[0][reading.stage.state]
            state = torch.stack(given) if isinstance(given, list) else given
            x = reading.into.inverse()(state[: len(prompts)])
            mine = _predicted(adapter, reading, x, step.time, prompts, dtype)
            _compare(mine, reading.place.inverse()(step.handed), allowed, f"in step {number + 1} its network's output")
    finally:
        adapter.guidance = before
    if tuple(seen.images.shape) != (len(prompts), 3, *adapter.sides):
        raise Unreadable(
            f"it draws images of {tuple(seen.images.shape[1:])}, and {(3, *adapter.sides)} were asked for"
        )
    assert seen.latents is not None
    drawn = adapter.decode(reading.decoded.inverse()(seen.latents))
    _compare((drawn / 2 + 0.5).clamp(0, 1), seen.images, allowed, "its image")


def _predicted(adapter: Any, reading: Reading, x: Tensor, time: float, prompts: list[str], dtype: Any) -> Tensor:
    t = torch.full((len(x),), time, device=x.device)
    cond = adapter.predict(adapter.network, x, t, adapter.joined(prompts, dtype=dtype))
    if reading.guidance.kind != "two":
        return cond
    null = adapter.predict(adapter.network, x, t, adapter.joined([None] * len(x), dtype=dtype))
    mixed = null + GUIDANCE * (cond - null)
    return adapter.guided(mixed, cond) if adapter.changes_guided else mixed


def _compare(mine: Tensor, theirs: Tensor, allowed: float, what: str) -> None:
    differs = float((mine.float() - theirs.to(mine.device).float()).abs().max() / theirs.abs().max())
    if not differs <= allowed:
        raise Unreadable(f"{what} is {differs:.1e} off when it is replayed, and {allowed:.0e} is allowed")
