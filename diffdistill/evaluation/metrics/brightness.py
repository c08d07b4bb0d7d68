"""Brightness and colour of images: their spread over images, and their mean, beside those of real ones."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Figure, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.evaluation.context import Context


def look(images: "Tensor") -> "Tensor":
    from diffdistill.evaluation.brightness import mean_colours

    return mean_colours(images)


def compute(context: "Context") -> dict[str, Any]:
    """Ratios of spreads and differences of means, and the same between two parts of the reference."""
    import torch

    from diffdistill.evaluation.brightness import tone

    fake, real = context.seen("brightness"), context.real_seen("brightness")
    found = tone(real, fake)
    entry: dict[str, Any] = {name: float(figure) for name, figure in found.items()}
    entry["standard_errors"] = {name: figure.standard_error for name, figure in found.items()}
    entry |= {"units": "black -1, white 1", "n": len(fake), "n_reference": len(real), "floor": None}
    if context.floor and len(real) >= 8:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(context.seed + 1))
        held, rest = order.tensor_split([min(len(fake), len(real) // 2)])
        between = {name: float(figure) for name, figure in tone(real[rest], real[held]).items()}
        entry["floor"] = {"value": between, "n": len(held), "n_reference": len(rest)}
    return entry


METRIC = Metric(
    name="brightness",
    label="Brightness and colour",
    summary="Spread over images (1: as real ones) and shift of the mean (black -1, white 1)",
    lower_is_better=None,
    needs=("pixels",),
    figures=(
        Figure("brightness_spread", "Spread of brightness", lower_is_better=None),
        Figure("brightness_shift", "Shift of brightness", lower_is_better=None),
        Figure("colour_spread", "Spread of colour", lower_is_better=None),
        Figure("colour_shift", "Shift of colour", lower_is_better=None),
    ),
    compute=compute,
    look=look,
    order=90,
    least=2,
)
