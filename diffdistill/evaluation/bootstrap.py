"""How far a Fréchet distance would move with other samples of the same generator."""

import torch
from torch import Tensor

from diffdistill.evaluation.frechet import Gaussian, fit, frechet_terms


def bootstrap_error(reference: Gaussian, features: Tensor, *, resamples: int = 50, seed: int = 0) -> float:
    """Standard error of the Fréchet distance over the draw of `features` `(N, d)`: the spread of bootstrap resamples.

    The *spread* of the resampled distances is used, not their quantiles: a resample repeats images, which adds the
    small-sample bias about once more to every resampled distance, and hardly any spread. Where bias is most of the
    distance (few images, or a generator as good as the reference) the error comes out up to twice too large.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(features)
    values = [
        frechet_terms(reference, fit(features[torch.randint(n, (n,), generator=generator)])).value
        for _ in range(resamples)
    ]
    return float(torch.tensor(values, dtype=torch.float64).std())
