"""KID: the squared maximum mean discrepancy of features with a cubic kernel."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.context import Context

SUBSETS, SIZE = 100, 1000


def compute(context: "Context") -> dict[str, Any]:
    """The mean over subsets, its error, and the same between two parts of the reference."""
    from diffdistill.evaluation.kernel import kernel_distance

    fake = context.generated.features
    size = min(SIZE, len(fake) // 2, len(context.real) // 2)
    real = context.real if context.backend.name == "native" else context.real.double()  # others know one kind only
    value = context.backend.kernel(real, fake, SUBSETS, size, context.seed)

    def between(rest: "Tensor", held: "Tensor") -> float:
        subset = min(size, len(held) // 2)
        return float(kernel_distance(rest, held, subsets=SUBSETS, subset_size=subset, seed=context.seed))

    more = {"subsets": SUBSETS, "subset_size": size, "backend": context.backend.name}
    return context.entry(value, n=len(fake), floor=context.floor_of("kid", between), **more)


METRIC = Metric(
    name="kid",
    label="KID",
    summary="Distance to real images",
    lower_is_better=True,
    of_features=True,
    needs=("images",),
    compute=compute,
    order=20,
    least=4,
)
