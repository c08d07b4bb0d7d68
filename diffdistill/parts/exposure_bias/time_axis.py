"""Training time steps of a scheduler and the noise levels they stand for."""

import math
from typing import Any

import numpy as np
import torch

from diffdistill.parts.exposure_bias.families import family


class TimeAxis:
    """Time `0 .. T` of a scheduler <-> the level it keeps in `sigmas` (s / alpha; for flow, s itself), float64.

    - schedulers with a table: time is the training time step, ln sigma is linear between two of them
    - flow: time = T sigma
    - EDM: no time steps; T equal parts of ln sigma between sigma_min and sigma_max
    """

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        self.kind = family(scheduler)
        self.steps = int(scheduler.config.num_train_timesteps)
        if self.kind in ("table", "ve", "vp"):
            # The floor is that of diffusers for zero terminal SNR.
            alpha_bar = scheduler.alphas_cumprod.double().cpu().numpy().clip(2**-24, None)
            self.times = np.arange(len(alpha_bar), dtype=np.float64)
            self.log_sigmas = 0.5 * np.log((1 - alpha_bar) / alpha_bar)
        elif self.kind == "edm":
            self.times = np.array([0.0, self.steps])
            self.log_sigmas = np.log([scheduler.config.sigma_min, scheduler.config.sigma_max])

    def time(self, sigma: float) -> float:
        """The time step of a level; 0 for all levels below the first."""
        if self.kind == "flow":
            return self.steps * sigma
        return float(np.interp(math.log(max(sigma, 1e-12)), self.log_sigmas, self.times))

    def sigma(self, times: np.ndarray) -> np.ndarray:
        """Levels of time steps, same shape."""
        if self.kind == "flow":
            return times / self.steps
        return np.exp(np.interp(times, self.times, self.log_sigmas))

    def last(self) -> float:
        return float(self.steps) if self.kind == "flow" else float(self.times[-1])

    def label(self, time: float, sigma: float) -> float:
        """What the scheduler writes into `timesteps` for this level: the number that the network is given."""
        if self.kind == "edm":
            return float(self.scheduler.precondition_noise(torch.tensor(sigma)))
        if self.scheduler.config.get("timestep_type") == "continuous":
            return 0.25 * math.log(sigma)
        return time

    def expected_variance(self, sigma: np.ndarray, data_variance: float) -> np.ndarray:
        """Within-image variance of a state `alpha x0 + s eps`: alpha^2 V0 + s^2, in the scheduler's own units."""
        if self.kind == "flow":
            return (1 - sigma) ** 2 * data_variance + sigma**2
        if self.kind in ("ve", "edm"):
            return data_variance + sigma**2
        return (data_variance + sigma**2) / (1 + sigma**2)
