"""The mean of the Fréchet distances within each class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.context import Context


def compute(context: "Context") -> dict[str, Any]:
    """The mean over the classes, and the distance of each; what is said where classes or images are missing."""
    from diffdistill.errors import ConfigError
    from diffdistill.evaluation.frechet import per_class_frechet

    images = context.reference.images
    if context.generated.labels is None or images is None or images.labels is None:
        raise ConfigError("metric 'per_class_fid' needs class labels of the images and of the reference")
    fake, labels = context.generated.features, context.generated.labels
    assert context.reference.index is not None
    real_labels = images.labels[context.reference.index]
    names = {label: class_name(label, images.class_names) for label in {*labels.tolist(), *real_labels.tolist()}}
    classes = per_class_frechet(context.real, real_labels, fake, labels, names)
    values = [entry["value"] for entry in classes.values()]
    absent = [names[label] for label in sorted(set(real_labels.tolist()) - set(labels.tolist()))]
    if absent:
        context.warnings.append(
            f"FID per class: no image is of the class {', '.join(absent):.200}; the mean is that of the other "
            f"{len(classes)}"
        )
    few = [label for label, entry in classes.items() if min(entry["n"], entry["n_reference"]) <= fake.shape[1]]
    if few:
        context.warnings.append(
            f"FID per class: {len(few)} of {len(classes)} classes have at most {fake.shape[1]} images, as many as "
            f"there are features: the distance is mostly small-sample bias"
        )
    named = {names[label]: entry for label, entry in classes.items()}
    return context.entry(sum(values) / len(values), n=len(fake), classes=named)


def class_name(label: int, names: "Sequence[str] | None") -> str:
    """What a class is called: its name, or its number."""
    return names[label] if names is not None and 0 <= label < len(names) else str(label)


METRIC = Metric(
    name="per_class_fid",
    label="FID per class, mean",
    summary="Distance to real images of the same class",
    lower_is_better=True,
    of_features=True,
    needs=("images", "labels"),
    compute=compute,
    order=70,
    least=2,
)
