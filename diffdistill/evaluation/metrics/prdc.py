"""Precision, recall, density and coverage."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Figure, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.context import Context

K = 5
LIMIT = 10_000  # images of either side: their distances are a matrix


def compute(context: "Context") -> dict[str, Any]:
    """The four figures at equal numbers of images, and the same between two parts of the reference."""
    from diffdistill.errors import DataError
    from diffdistill.evaluation.precision_recall import prdc

    fake = context.generated.features[context.some(LIMIT)]
    real = context.real_sample(len(fake))
    if len(real) < len(fake):
        context.warnings.append(
            f"precision and recall are of {len(real)} of {len(fake)} images, for the reference has no more: they "
            f"depend on the numbers, which must be equal"
        )
        fake = context.generated.features[context.some(len(real))]
    if min(len(real), len(fake)) <= K:
        raise DataError(f"prdc needs more than {K} images on both sides, not {len(real)} and {len(fake)}")

    def between(rest: "Tensor", held: "Tensor") -> dict[str, float]:
        return prdc(rest[: len(fake)], held[: len(fake)], K)

    floor = context.floor_of("prdc", between) if len(context.real) > 2 * K + 2 else None
    counts = {"n": len(fake), "n_reference": len(real)}
    return {**prdc(real, fake, K), "k": K, **counts, "backend": "native", "floor": floor}


METRIC = Metric(
    name="prdc",
    label="Precision and recall",
    summary="Fidelity and variety",
    needs=("images",),
    figures=(
        Figure("precision", "Precision"),
        Figure("recall", "Recall"),
        Figure("density", "Density"),
        Figure("coverage", "Coverage"),
    ),
    compute=compute,
    order=30,
    least=K + 1,
)
