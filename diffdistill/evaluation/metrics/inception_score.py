"""Inception Score: confident classes for each image, all classes over the set."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.context import Context

SPLITS = 10


def compute(context: "Context") -> dict[str, Any]:
    """The score in random order, its error over the splits, and that of real images."""
    from diffdistill.evaluation.draws import content_keys, ranked
    from diffdistill.evaluation.entropy import inception_score

    def score(features: "Tensor") -> "Estimate":
        probabilities = context.extractor.probabilities(features)
        assert probabilities is not None  # the evaluator has refused other extractors
        order = ranked(content_keys(features), context.seed)
        return inception_score(probabilities[order], min(SPLITS, len(features)))

    features = context.generated.features
    value = score(features)
    probabilities = context.extractor.probabilities(features[:1])
    assert probabilities is not None
    splits = min(SPLITS, len(features))
    if len(features) // splits < probabilities.shape[1]:
        context.warnings.append(
            f"the Inception score is of {splits} parts of {len(features) // splits} images, and there are "
            f"{probabilities.shape[1]} classes: so few images cannot show them all"
        )
    real = float(score(context.real_sample(len(features)))) if context.reference.features is not None else None
    return context.entry(value, n=len(features), splits=splits, of_the_reference=real)


METRIC = Metric(
    name="is",
    label="Inception score",
    summary="Confident classes for each image, all classes over the set",
    of_features=True,
    needs=("reference", "classifier"),
    compute=compute,
    order=40,
)
