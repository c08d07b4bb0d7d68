"""What was read off a pipeline at one size of image: all that is needed to call its network without it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffdistill.pipelines.text.calls.gather import PROBES, Gather, Unreadable, probes
from diffdistill.pipelines.text.calls.guidance import Guidance, read_guidance
from diffdistill.pipelines.text.calls.leaves import Leaves, Path, count, name_of, row, same, together
from diffdistill.pipelines.text.calls.stage import LONG, SHORT, Stage
from diffdistill.pipelines.text.calls.watch import Step, Wish

Affine = tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """stage: the pipeline, ready to be watched. shape: `(C, h, w)` of its noise. into: noise to the network's state;
    place: noise to the scheduler's; outof: the network's output in the noise's order, and in the sign that the
    scheduler takes; decoded: noise to what the VAE is given. times: arguments that are the time, from the scheduler's.
    fixed, repeated: arguments that are the same for every prompt, in all or for every image. text: those of a prompt.
    listed: arguments that are lists, an entry an image. masks: those that mark where texts of a batch end, if they
    are not equally long. ragged: the texts' arguments that are filled with zeros then.
    """

    stage: Stage
    shape: tuple[int, int, int]
    into: Gather
    place: Gather
    outof: Gather
    decoded: Gather
    times: dict[Path, Affine]
    fixed: Leaves
    repeated: Leaves
    text: tuple[Path, ...]
    listed: frozenset[Path]
    ragged: frozenset[Path]
    masks: dict[Path, torch.dtype]
    guidance: Guidance

    @property
    def tokens(self) -> int | None:
        """How many tokens an image is in the scheduler's state; None where it is a map."""
        return self.place.shape[0] if len(self.place.shape) == 2 else None


def read(pipeline: Any, part: str, sides: tuple[int, int]) -> Reading:
    """Watch the pipeline at this height and width. Raises Unreadable."""
    stage = Stage(pipeline, part, sides)
    plain = stage.begin().calls[0]
    shape = map_of(stage.watch([SHORT], Wish(until="drawn")).drawn)
    steps = _probed(stage, shape)
    found = steps[0].calls[0]
    into = Gather.read(_rows(found[stage.state]), shape).bare()
    into.inverse()  # else the network is given more than the noise, or less
    place = Gather.read(steps[0].state, shape).bare()
    outof = place.inverse().after(Gather.read(steps[0].handed, stage.output_shape))
    times = _times(stage, steps)
    kinds = Kinds(stage.state, set(times), plain, found, stage.asked(LONG))
    timeless = {path: value for path, value in plain.items() if path not in times}
    guidance = read_guidance(stage, timeless, place, outof, kinds.text)
    if guidance.kind == "two":
        kinds.widen(plain, guidance.null_row(_guided(stage, guidance), stage.state))
    masks = _masks(stage, plain, kinds)
    return Reading(
        stage, shape, into, place, outof, _decoded(stage, place), times, kinds.fixed, kinds.repeated,
        tuple(sorted(kinds.text)), frozenset(kinds.listed), frozenset(kinds.ragged), masks, guidance,
    )  # fmt: skip


def map_of(drawn: tuple[int, ...] | None) -> tuple[int, int, int]:
    """`(C, h, w)` of noise that was drawn for one image."""
    shape = list((drawn or ())[1:])
    while len(shape) > 3 and 1 in shape:
        shape.remove(1)  # of frames: an image is one
    if len(shape) != 3:
        raise Unreadable(f"it draws noise of {drawn}, and channels, height and width of an image are read")
    return shape[0], shape[1], shape[2]


def _probed(stage: Stage, shape: tuple[int, int, int]) -> list[Step]:
    """Three steps of a batch whose noise and whose outputs are counting numbers."""
    numbers = probes(stage.output_shape).to(stage.pipeline.device)
    wish = Wish(probes(shape), stage.outputs(lambda _rows: numbers), until="stepped", steps=3)
    return stage.watch([SHORT] * PROBES, wish, steps=3).steps


def _rows(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.stack(value)


def _times(stage: Stage, steps: list[Step]) -> dict[Path, Affine]:
    """Arguments that change from step to step, as factor and offset of the scheduler's time."""
    found: dict[Path, Affine] = {}
    first, second, third = (step.time for step in steps)
    for path in steps[0].calls[0]:
        values = [step.calls[0][path] for step in steps]
        if path == stage.state or same(values[0], values[1]):
            continue
        if not all(isinstance(value, Tensor | float | int) for value in values):
            raise Unreadable(f"its network's '{name_of(path)}' changes from step to step")
        one, two, three = (float(torch.as_tensor(value).flatten()[0]) for value in values)
        factor = _plain((two - one) / (second - first))
        offset = _plain(one - factor * first)
        if abs(three - factor * third - offset) > 1e-4 * max(abs(one), abs(three)):
            raise Unreadable(f"its network's '{name_of(path)}' follows the scheduler's time in a way that is not read")
        found[path] = factor, offset
    if not found:
        raise Unreadable("its network is told no time")
    return found


def _plain(value: float) -> float:
    """A number as it was meant, n or 1 / n, where its rounding in float32 is off by so little."""
    near = [float(round(value))] + ([1 / round(1 / value)] if 0 < abs(value) < 0.5 and round(1 / value) else [])
    return next((number for number in near if abs(number - value) < 1e-6 * max(abs(number), abs(value), 0.1)), value)


class Kinds:
    """Which arguments are the same for every prompt (`fixed`, or `repeated` for every image), and which a prompt's.

    plain, many, other: the network's arguments for one prompt, for `PROBES` times that one, and for another.
    """

    def __init__(self, state: Path, times: set[Path], plain: Leaves, many: Leaves, other: Leaves):
        self.fixed: Leaves = {}
        self.repeated: Leaves = {}
        self.text: set[Path] = set()
        self.listed: set[Path] = set()
        self.ragged: set[Path] = set()
        for path, value in plain.items():
            if path == state or path in times:
                continue
            if count(value) == 1 and count(many[path]) == PROBES:
                if isinstance(value, list):
                    self.listed.add(path)
                self._of_image(path, row(value, 0), row(other[path], 0))
            elif same(value, many[path]) and same(value, other[path]):
                self.fixed[path] = value
            else:
                raise Unreadable(f"its network's '{name_of(path)}' differs between prompts and has no row for each")

    def _of_image(self, path: Path, one: Any, other: Any) -> None:
        if same(one, other):
            self.repeated[path] = one
            return
        if not isinstance(one, Tensor):
            raise Unreadable(f"its network's '{name_of(path)}' differs between prompts and is no tensor")
        self.text.add(path)
        self.repeated.pop(path, None)
        if path not in self.listed and one.shape != other.shape:
            self.ragged.add(path)

    def widen(self, plain: Leaves, null: Leaves) -> None:
        """Count as a prompt's what differs between a prompt and the null one."""
        for path in list(self.text | self.repeated.keys()):
            self._of_image(path, row(plain[path], 0), null[path])


def _guided(stage: Stage, guidance: Guidance) -> list[Leaves]:
    """The network's calls for one image in one guided step."""
    wish = Wish(output=stage.outputs(lambda rows: torch.zeros(rows, *stage.output_shape)), until="stepped")
    return stage.watch([SHORT], wish, **guidance.arguments(2.0, 1)).steps[0].calls


def _masks(stage: Stage, plain: Leaves, kinds: Kinds) -> dict[Path, torch.dtype]:
    """Arguments that mark where texts end, where texts of different lengths are in one batch and there only."""
    if not kinds.ragged:
        return {}
    both, other = stage.watch([SHORT, LONG], Wish(until="asked")).calls[0], stage.asked(LONG)
    masks: dict[Path, torch.dtype] = {}
    lengths = [0, 0]
    for path in kinds.ragged:
        rows = [row(found[path], 0) for found in (plain, other)]
        lengths = [one.shape[1] for one in rows]
        if any(one.shape[2:] != rows[0].shape[2:] for one in rows) or not same(both[path], together(rows, False)):
            raise Unreadable(f"it joins texts of different lengths in its network's '{name_of(path)}' in its own way")
    for path in [path for path, value in kinds.fixed.items() if value is None and isinstance(both[path], Tensor)]:
        ends = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        if not same(both[path].bool().cpu(), ends):
            raise Unreadable(f"its network's '{name_of(path)}' marks the ends of texts in a way that is not read")
        masks[path] = both[path].dtype
    return masks


def _decoded(stage: Stage, place: Gather) -> Gather:
    """What the VAE is given, from the noise's order: the pipeline goes on with counting numbers in its state."""
    zeros = stage.outputs(lambda rows: torch.zeros(rows, *stage.output_shape).to(stage.pipeline.device))
    seen = stage.watch([SHORT] * PROBES, Wish(None, zeros, probes(place.shape), until="decoded"))
    if seen.latents is None or seen.latents.shape[0] != PROBES:
        raise Unreadable("it does not give its VAE a batch of images")
    return Gather.read(seen.latents, place.shape).after(place)
