"""Scheduled sampling: denoising of what the model itself makes of a noisier image (2411.05472).

A sampler shows a network its own earlier estimates, noised anew, and not noised data: exposure bias. Here a part of
the images that is denoised is made as a sampler makes it, one step of a schedule further up:

    x' = x0 + sigma' eps',    x0^ = D(x', sigma') (a constant),    x_t = x0^ + sigma eps,    target: the data's own x0.

The part 1 - p grows over the epochs e, p = mu / (mu + exp(e / mu)): by mu = 12 it is 0.5 after 30 epochs. (One public
code has exp(e) / mu in its place: 0.5 after 5.) Departures: the paper is on molecules, this on images; `most`, and the
level above on Karras' schedule, are ours. (2301.11706 perturbs the input by noise to the same end.)
"""

import math
from typing import ClassVar, Literal

from pydantic import Field

from diffdistill.objectives.base import Objective
from diffdistill.section import Count, Fraction, Positive


class ScheduledSampling(Objective):
    """2411.05472: denoising of data and, more and more, of the model's own estimates noised again."""

    training: ClassVar[str] = "denoising score matching with scheduled sampling (2411.05472), averaged weights"

    name: Literal["scheduled_sampling"] = "scheduled_sampling"
    mu: Positive = Field(12.0, description="epochs: half of the images are the model's own after mu ln mu of them")
    most: Fraction = Field(0.5, description="largest part of a batch that is made of the model's own estimates")
    steps: Count = Field(35, description="Karras steps of the sampler; an estimate is made at its next higher level")

    def own_part(self, epoch: float) -> float:
        """Of a batch at an epoch: 1 - mu / (mu + exp(epoch / mu)), at most `most`.

        >>> [round(ScheduledSampling(most=1.0).own_part(e), 3) for e in (0, 12 * 2.4849066, 1000)]
        [0.077, 0.5, 1.0]
        """
        return min(self.most, 1 - self.mu / (self.mu + math.exp(min(epoch / self.mu, 500.0))))


OBJECTIVE = ScheduledSampling
