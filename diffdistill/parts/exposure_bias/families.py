"""Which schedulers of diffusers can be corrected, and how each writes its state as x = alpha x0 + s eps."""

import math
from typing import Any, Literal, NamedTuple

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
