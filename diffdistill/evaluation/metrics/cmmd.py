"""CMMD: the maximum mean discrepancy of CLIP features."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.context import Context

LIMIT = 10_000


def compute(context: "Context") -> dict[str, Any]:
    """The distance, and the same between two parts of the reference."""
    from diffdistill.evaluation.clip_mmd import cmmd

    fake = context.generated.features[context.some(LIMIT)]
    value = cmmd(context.real_sample(LIMIT), fake)
    floor = context.floor_of("cmmd", lambda rest, held: cmmd(rest[:LIMIT], held[:LIMIT]))
    return context.entry(value, n=len(fake), floor=floor)


METRIC = Metric(
    name="cmmd",
    label="CMMD",
    summary="Distance to real images, of CLIP features",
    lower_is_better=True,
    needs=("images", "clip_features"),
    compute=compute,
    order=60,
    least=2,
)
