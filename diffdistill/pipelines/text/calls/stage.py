"""A pipeline made ready to be read at one size: its call, its state, and outputs in the place of its network's."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffdistill.pipelines.text.calls.gather import Unreadable
from diffdistill.pipelines.text.calls.leaves import Leaves, Path, count, row
from diffdistill.pipelines.text.calls.watch import Seen, Step, Wish, watched

# Two texts of different lengths; what differs between their calls is what the network is told of a text.
SHORT, LONG = "a", "two red apples"
# Of the runs that look at one: schedules of a single step may have a time that is no number (Qwen-Image's).
STEPS = 2
# By which a pipeline may be told how strongly to guide.
SCALES = ("guidance_scale", "true_cfg_scale")


@dataclass
class Stage:
    """pipeline, part: whose network is watched, and its name there. sides: height and width of the images in pixels,
    None for the pipeline's own. off: arguments with which it asks its network once for an image.
    """

    pipeline: Any
    part: str
    sides: tuple[int, int] | None
    off: dict[str, Any] = field(default_factory=dict)
    state: Path = ()
    state_listed: bool = False
    output_listed: bool = False
    output_shape: tuple[int, ...] = ()

    @property
    def parameters(self) -> Any:
        return inspect.signature(type(self.pipeline).__call__).parameters

    def call(self, steps: int, more: dict[str, Any]) -> dict[str, Any]:
        size = {} if self.sides is None else dict(zip(("height", "width"), self.sides, strict=True))
        own = {"output_type": "pt", "use_resolution_binning": False}
        given = {"num_inference_steps": steps, **size, **own, **self.off, **more}
        return {name: value for name, value in given.items() if name in self.parameters}

    def watch(self, prompts: Sequence[str], wish: Wish, steps: int = STEPS, **more: Any) -> Seen:
        return watched(self.pipeline, self.part, prompts, wish, **self.call(steps, more))

    def asked(self, prompt: str, **more: Any) -> Leaves:
        """What the network is given for one prompt in the first step; it is not run."""
        return self.watch([prompt], Wish(until="asked"), **more).calls[0]

    def begin(self) -> Step:
        """Find the state and the arguments that turn guidance off: one step, the network's own. Returns that step."""
        names = [name for name in SCALES if name in self.parameters]
        told = getattr(getattr(self.pipeline, self.part).config, "guidance_embeds", False)
        names = [name for name in names if self.parameters[name].default is not None or told]
        # Some pipelines guide by w, others by w - 1, and 0 is none.
        for scale in (1.0, 0.0):
            self.off = dict.fromkeys(names, scale)
            seen = self.watch([SHORT], Wish(until="stepped"))
            if not seen.steps or not seen.steps[0].calls or seen.noise is None:
                raise Unreadable(f"it does not draw noise, call its {self.part} and step its scheduler in turn")
            step = seen.steps[0]
            self.state = state_of(step.calls[0], seen.noise)
            self.state_listed = isinstance(step.calls[0][self.state], list)
            if sum(count(call[self.state]) or 0 for call in step.calls) == 1:
                output = step.outputs[0]
                self.output_listed, self.output_shape = isinstance(output, list), tuple(output[0].shape)
                return step
        raise Unreadable("it asks its network twice for an image whatever its guidance")

    def outputs(self, rows: Callable[[int], Tensor]) -> Callable[[Leaves, int], Any]:
        """Outputs in place of the network's: `rows(number of rows)`, as it returns them."""

        def made(found: Leaves, _number: int) -> Any:
            value = rows(count(found[self.state]) or 0)
            return list(value) if self.output_listed else value

        return made


def state_of(found: Leaves, noise: Tensor) -> Path:
    """Which argument of the network is the noise, in whatever order and scaled by whatever number."""
    want = noise[0].flatten().float().sort().values
    for path, value in found.items():
        if not (isinstance(value, Tensor) and value.dim() > 1) and not (isinstance(value, list) and value):
            continue
        one = row(value, 0)
        if not isinstance(one, Tensor) or one.numel() != want.numel() or not one.is_floating_point():
            continue
        got = one.flatten().float().sort().values
        scale = got.norm() / want.norm()
        if scale > 0 and torch.allclose(got, scale * want, rtol=0, atol=1e-2 * float(got.abs().max())):
            return path
    raise Unreadable("none of its network's arguments is its noise alone")
