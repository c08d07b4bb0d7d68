"""FID: the Fréchet distance of two Gaussians fitted to features."""

from typing import TYPE_CHECKING, Any

from diffdistill.evaluation.metrics import Metric

if TYPE_CHECKING:
    from diffdistill.evaluation.context import Context


def compute(context: "Context") -> dict[str, Any]:
    """The distance, its bootstrap error, and the same between two parts of the reference."""
    from diffdistill.evaluation.arrays import Estimate
    from diffdistill.evaluation.frechet import bootstrap_error, fit, frechet_terms

    real, fake = context.reference.gaussian, context.generated.gaussian
    terms = frechet_terms(real, fake)
    value = terms.value if context.backend.name == "native" else context.backend.frechet(real, fake)
    error = float("nan")
    features = context.generated.features
    if context.resamples:
        # Large covariances are slow to factor: fewer resamples know the error to a quarter of itself.
        resamples = context.resamples if features.shape[1] <= 512 else min(context.resamples, 10)
        part = len(features) / context.generated.n
        error = bootstrap_error(real, features, resamples=resamples, seed=context.seed) * part**0.5
    if terms.clipped > 1e-6:
        context.warnings.append(
            f"{terms.clipped:.1e} of the variance was clipped: a covariance has negative eigenvalues"
        )
    floor = context.floor_of("fid", lambda rest, held: frechet_terms(fit(rest), fit(held)).value)
    more = {"mean_term": terms.mean_term, "clipped": terms.clipped, "floor": floor, "backend": context.backend.name}
    return context.entry(Estimate(value, error), **more)


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
