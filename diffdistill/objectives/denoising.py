"""Denoising score matching (2206.00364, Table 1).

    minimise E lambda(sigma) ||D(x0 + sigma eps, sigma, c) - x0||^2 / (C H W),

lambda the weight that makes it the squared error of the network's own output: EDM's for a network trained from
scratch.
"""

from typing import ClassVar, Literal

from diffdistill.objectives.base import Objective


class Denoising(Objective):
    """Denoising score matching (2206.00364, Table 1)."""

    training: ClassVar[str] = "denoising score matching, averaged weights"
    name: Literal["denoising"] = "denoising"


OBJECTIVE = Denoising
