"""The Fréchet distance within each class."""

from torch import Tensor

from diffdistill.errors import DataError
from diffdistill.evaluation.arrays import as_pair
from diffdistill.evaluation.frechet import Array, fit, frechet_terms


def per_class_frechet(
    real: Array, real_labels: Tensor, fake: Array, fake_labels: Tensor
) -> dict[int, dict[str, float]]:
    """`{class: {"value": FD, "n": fake images, "n_reference": real images}}` of features with labels `(N,)`, `(M,)`.

    A class has few images, so its distance has more bias than the whole set's: compare equal numbers only.

    Raises:
        DataError: labels that do not fit the features, or a class with fewer than two images on either side.
    """
    x, y = as_pair(real, fake)
    for features, labels in ((x, real_labels), (y, fake_labels)):
        if labels.shape != (len(features),):
            raise DataError(
                f"{len(features)} images have labels of shape {tuple(labels.shape)}: one label an image is needed"
            )
    result = {}
    for label in fake_labels.unique().tolist():
        a, b = x[real_labels == label], y[fake_labels == label]
        if min(len(a), len(b)) < 2:
            raise DataError(
                f"class {label} has {len(a)} real and {len(b)} generated images: at least 2 of each are needed"
            )
        result[label] = {"value": frechet_terms(fit(a), fit(b)).value, "n": len(b), "n_reference": len(a)}
    return result
