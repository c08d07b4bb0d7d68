"""ISTD: how evenly a model's images change between two noises."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Figure, Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.probe import Probe

STEPS = 9


def probe(model: "Probe") -> dict[str, Any]:
    """The figures of as many paths as the images suffice for, each with its standard error over them."""
    from diffdistill.evaluation.interpolation import PATHS, istd

    paths = PATHS if model.num_images is None else model.num_images // STEPS
    shape, settings = model.model.image_shape, {"seed": model.seed, "batch_size": model.batch_size}
    figures = istd(model.draw, shape, paths=paths, steps=STEPS, **settings)
    entry: dict[str, Any] = {name: float(figure) for name, figure in figures.items()}
    errors = {name: figure.standard_error for name, figure in figures.items()}
    return entry | {"standard_errors": errors, "n": paths, "images": paths * STEPS, "units": "black 0, white 1"}


METRIC = Metric(
    name="istd",
    label="ISTD",
    summary="Unevenness of a walk between two noises",
    lower_is_better=True,
    figures=(
        Figure("istd", "ISTD", lower_is_better=True),
        Figure("istd_relative", "ISTD, of the mean step", lower_is_better=True),
    ),
    probe=probe,
    order=100,
    least=2 * STEPS,
)
