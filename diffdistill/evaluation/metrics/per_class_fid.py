"""The mean of the Fréchet distances within each class."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.context import Context


def compute(context: "Context") -> dict[str, Any]:
    """The mean over the classes, and the distance of each."""
    from diffdistill.errors import ConfigError
    from diffdistill.evaluation.frechet import per_class_frechet

    images = context.reference.images
    if context.generated.labels is None or images is None or images.labels is None:
        raise ConfigError("metric 'per_class_fid' needs class labels of the images and of the reference")
    fake = context.generated.features
    assert context.reference.index is not None
    real_labels = images.labels[context.reference.index]
    classes = per_class_frechet(context.real, real_labels, fake, context.generated.labels)
    values = [entry["value"] for entry in classes.values()]
    named = {
        images.class_names[label] if images.class_names else str(label): entry for label, entry in classes.items()
    }
    return context.entry(sum(values) / len(values), n=len(fake), classes=named)


METRIC = Metric(
    name="per_class_fid",
    label="FID per class, mean",
    summary="Distance to real images of the same class",
    lower_is_better=True,
    of_features=True,
    needs=("images", "labels"),
    compute=compute,
    order=70,
)
