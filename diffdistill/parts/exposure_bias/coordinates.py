"""Which schedulers of diffusers can be corrected, how each writes its state as x = alpha x0 + s eps, and its time."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from diffdistill.errors import ConfigError

Family = Literal["table", "ve", "vp", "edm", "flow"]


class Base(NamedTuple):
    """A scheduler class of diffusers.

    family: how its state is written
    - table: alpha = sqrt(abar_t), s = sqrt(1 - abar_t), by integer time step
    - ve: alpha = 1, s = sigma;  edm: the same, with a network that is preconditioned inside `step`
    - vp: alpha = 1 / sqrt(1 + sigma^2), s = sigma alpha;  flow: alpha = 1 - sigma, s = sigma
    time_shift: whether its solver stays consistent when a state's noise level is rewritten between two steps
    """

    family: Family
    time_shift: bool


# Without time shift: solvers that precompute middle levels (KDPM2, flow Heun, single step), keep time steps of their
# own (SASolver), or jump to x0 and add noise anew (LCM, TCD), where a state's level is what was added.
BASES: dict[str, Base] = {
    "DDPMScheduler": Base("table", True),
    "DDIMScheduler": Base("table", True),
    "PNDMScheduler": Base("table", True),
    "LCMScheduler": Base("table", False),
    "TCDScheduler": Base("table", False),
    "EulerDiscreteScheduler": Base("ve", True),
    "EulerAncestralDiscreteScheduler": Base("ve", True),
    "HeunDiscreteScheduler": Base("ve", True),
    "LMSDiscreteScheduler": Base("ve", False),
    "KDPM2DiscreteScheduler": Base("ve", False),
    "KDPM2AncestralDiscreteScheduler": Base("ve", False),
    "DPMSolverMultistepScheduler": Base("vp", True),
    "DPMSolverSinglestepScheduler": Base("vp", False),
    "UniPCMultistepScheduler": Base("vp", True),
    "DEISMultistepScheduler": Base("vp", True),
    "SASolverScheduler": Base("vp", False),
    "EDMEulerScheduler": Base("edm", True),
    "EDMDPMSolverMultistepScheduler": Base("edm", True),
    "CosineDPMSolverMultistepScheduler": Base("edm", True),
    "FlowMatchEulerDiscreteScheduler": Base("flow", True),
    "FlowMatchHeunDiscreteScheduler": Base("flow", False),
}


def base_name(scheduler: Any) -> str:
    """Name of the diffusers class that `scheduler` is, or corrects. ConfigError, with the list, for any other."""
    name = type(scheduler).__name__.removeprefix("Corrected")
    if name not in BASES:
        raise ConfigError(f"{type(scheduler).__name__} cannot be corrected; these can: {', '.join(BASES)}")
    return name


def family(scheduler: Any) -> Family:
    """How the state of `scheduler` is written; DPM-Solver++ and its kin change theirs with `use_flow_sigmas`."""
    if scheduler.config.get("use_flow_sigmas"):
        return "flow"
    return BASES[base_name(scheduler)].family


def coordinates(scheduler: Any, index: int) -> tuple[float, float]:
    """`(alpha, s)` of the state `x = alpha x0 + s eps` that the network sees at `scheduler.timesteps[index]`.

    `index == len(timesteps)` is the state after the last step. Needs `set_timesteps`. Works for the classes in
    `BASES`, corrected or plain; ConfigError for any other.

    >>> from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
    >>> scheduler, flow = DDIMScheduler(), FlowMatchEulerDiscreteScheduler()
    >>> scheduler.set_timesteps(10)
    >>> flow.set_timesteps(10)
    >>> alpha, s = coordinates(scheduler, 3)
    >>> round(alpha**2 + s**2, 4), round(sum(coordinates(flow, 3)), 4)
    (1.0, 1.0)
    """
    if family(scheduler) != "table":
        return from_sigma(family(scheduler), float(evaluation_sigmas(scheduler, index)))
    if index == len(scheduler.timesteps):
        # DDPM ends on x0 itself, the others where their own last step leads.
        return _from_alpha_bar(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
    return table_coordinates(scheduler, int(scheduler.timesteps[index]))


def table_coordinates(scheduler: Any, timestep: int) -> tuple[float, float]:
    """`(sqrt(abar), sqrt(1 - abar))` at an integer time step."""
    return _from_alpha_bar(float(scheduler.alphas_cumprod[timestep]))


def from_sigma(kind: Family, sigma: float) -> tuple[float, float]:
    """`(alpha, s)` of the level that the scheduler stores in `sigmas`."""
    if kind == "flow":
        return 1 - sigma, sigma
    if kind == "vp":
        alpha = 1 / math.hypot(1, sigma)
        return alpha, sigma * alpha
    return 1.0, sigma


def evaluation_sigmas(scheduler: Any, index: int) -> torch.Tensor:
    """The level of the network's input at evaluation `index`: second stages of KDPM2 lie between two sigmas."""
    if index % 2 == 1 and index < len(scheduler.timesteps) and hasattr(scheduler, "sigmas_interpol"):
        ancestral = base_name(scheduler) == "KDPM2AncestralDiscreteScheduler"
        return scheduler.sigmas_interpol[index - 1 if ancestral else index]
    return scheduler.sigmas[index]


def position(scheduler: Any, timestep: Any) -> int:
    """The index into `timesteps` of the evaluation that is about to be made; before `step` moves it on."""
    if hasattr(scheduler, "sigmas"):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        return scheduler.step_index
    # By noise level, not by counting calls, so that image-to-image starts in the middle. Of two equal time steps the
    # later one; a time step that is not on the grid counts as the next noisier one.
    return max(int((scheduler.timesteps >= float(timestep)).sum()) - 1, 0)


def solver_step(scheduler: Any, index: int) -> tuple[int, int]:
    """`(step, number of steps)` of the solver, counted from the noisy end: the stages of one step share its number."""
    if base_name(scheduler) == "PNDMScheduler":
        return _pndm_step(scheduler, index)
    order = scheduler.order
    return index // order, -(-len(scheduler.timesteps) // order)


def _pndm_step(scheduler: Any, index: int) -> tuple[int, int]:
    """PNDM (2202.09778) begins with three Runge-Kutta steps of four evaluations; without, its first takes two."""
    num_steps, warm_up = len(scheduler._timesteps), len(scheduler.prk_timesteps)
    if scheduler.config.skip_prk_steps:
        return max(index - 1, 0) - (scheduler.counter == 1), num_steps
    if scheduler.counter < warm_up:
        return scheduler.counter // 4, num_steps
    return index - warm_up + warm_up // 4, num_steps


def _from_alpha_bar(alpha_bar: float) -> tuple[float, float]:
    return math.sqrt(alpha_bar), math.sqrt(max(1 - alpha_bar, 0.0))


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
