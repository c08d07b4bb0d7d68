"""Two halves: whether two models of disjoint halves of a set say the same of held-out images."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Figure, Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.probe import Probe


def probe(model: "Probe") -> dict[str, Any]:
    """The mean over the levels, the least of them, and all."""
    from diffdistill.evaluation.halves import compare

    return compare(model)


METRIC = Metric(
    name="two_halves",
    label="Agreement of two halves",
    summary="Of models trained on disjoint images: 1 has generalised, 0 remembers",
    figures=(
        Figure("two_halves", "Agreement of two halves"),
        Figure("two_halves_least", "Agreement of two halves, least of any level"),
    ),
    needs=("pixels", "other_half"),
    probe=probe,
    order=110,
    least=2,
)
