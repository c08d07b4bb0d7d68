"""Authenticity: whether generated images are copies of training images."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.context import Context

LIMIT = 10_000


def compute(context: "Context") -> dict[str, Any]:
    """The authentic share, and the picture of the nearest training images where one is asked for."""
    from diffdistill.evaluation.memorisation import nearest_neighbours, neighbour_picture

    chosen = context.some(LIMIT)
    fake = context.generated.features[chosen]
    neighbours = nearest_neighbours(context.real, fake)
    entry = context.entry(neighbours.authentic, n=len(fake), n_reference=len(context.real))
    entry |= {"nearest_distance": float(neighbours.distance[:, 0].min()), "picture": None}
    images, thumbnails = context.reference.images, context.generated.thumbnails
    if context.picture is not None and images is not None and thumbnails is not None:
        assert context.reference.index is not None
        try:
            nearest = replace(neighbours, index=context.reference.index[neighbours.index])  # of all training images
            neighbour_picture(context.picture, thumbnails[chosen], images.images, nearest)
            entry["picture"] = str(context.picture)
        except OSError as error:  # the figures are there all the same
            context.warnings.append(f"the picture {context.picture} could not be written ({error.strerror or error})")
    return entry


METRIC = Metric(
    name="neighbours",
    label="Authentic",
    summary="Share of images further from the training images than these are from each other; 0.5: no copies",
    needs=("images",),
    compute=compute,
    order=80,
    least=2,
)
