"""Consistency functions of Gaussian data, known in closed form; networks here are linear and of one pixel."""

import math

import torch

from diffdistill.consistency.objective import Noise
from diffdistill.process import EDM

SPREAD = 0.5


class Linear:
    """D(x, sigma) = slope(sigma) x, as a denoiser of EDM's kind."""

    process = EDM(SPREAD)

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, x, sigma, cond=None):
        return self.slope(sigma).reshape(-1, 1, 1, 1) * x


def teacher_of(spread):
    """E[x0 | x_t] of N(0, spread^2)."""
    return Linear(lambda sigma: spread**2 / (spread**2 + sigma**2))


def consistent(spread, bottom=0.0):
    """The end of the probability flow of N(0, spread^2) from (x, sigma) down to the level `bottom`."""
    return Linear(lambda sigma: ((spread**2 + bottom**2) / (spread**2 + sigma**2)).sqrt())


def nodes(count=8):
    """`(x0, eps, weight)` of a quadrature for two independent normal variables, float64."""
    from numpy.polynomial.hermite_e import hermegauss

    points, weights = (torch.tensor(v) for v in hermegauss(count))
    weights = weights / math.sqrt(2 * math.pi)
    a, b = (v.reshape(-1, 1, 1, 1) for v in torch.meshgrid(points, points, indexing="ij"))
    return a, b, torch.outer(weights, weights).flatten()


def noise_at(high, low, eps):
    ones = torch.ones(len(eps), dtype=torch.float64)
    return Noise(0.5 * ones, high * ones, low * ones, eps)
