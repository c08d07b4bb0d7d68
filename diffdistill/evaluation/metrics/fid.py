"""FID: the Fréchet distance of two Gaussians fitted to features."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.context import Context


def compute(context: "Context") -> dict[str, Any]:
    """The distance, its standard error, and the same between two parts of the reference."""
    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.frechet import fit, frechet_terms

    real, fake = context.reference.gaussian, context.generated.gaussian
    terms = frechet_terms(real, fake)
    value = terms.value if context.backend.name == "native" else context.backend.frechet(real, fake)
    error, how = standard_error(context)
    if terms.clipped > 1e-6:
        context.warnings.append(
            f"{terms.clipped:.1e} of the variance was clipped: a covariance has negative eigenvalues"
        )
    floor = context.floor_of("fid", lambda rest, held: frechet_terms(fit(rest), fit(held)).value)
    more = {"mean_term": terms.mean_term, "clipped": terms.clipped, "floor": floor, "backend": context.backend.name}
    more["standard_error_by"] = how
    return context.entry(Estimate(value, error), **more)


def standard_error(context: "Context") -> tuple[float, str | None]:
    """Over the draw of the generated images, NaN where it is not asked for; and how it was found."""
    from diffdistill.evaluation.frechet_error import bootstrap_error, delta_error

    real, features, resamples = context.reference.gaussian, context.generated.features, context.resamples
    if resamples is None:
        return delta_error(real, context.generated.gaussian, features, seed=context.seed), "delta method"
    if resamples == 0:
        return float("nan"), None
    part = len(features) / context.generated.n  # those that are kept
    error = bootstrap_error(real, features, resamples=resamples, seed=context.seed)
    return error * part**0.5, f"bootstrap of {resamples}"


METRIC = Metric(
    name="fid",
    label="FID",
    summary="Distance to real images",
    lower_is_better=True,
    of_features=True,
    needs=("reference",),
    compute=compute,
    order=10,
    least=2,
)
