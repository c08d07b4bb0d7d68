"""Samplers that a scheduler of diffusers computes (`sampling/scheduled.py`), on its own levels."""

from diffdistill.sampling.sampler import Sampler

_PLAIN = {"timestep_spacing": "trailing", "clip_sample": False}
SAMPLER = (
    Sampler(
        "vp_ddim",
        "DDIM with eta 0, even in the time of a linear schedule",
        steps=50,
        scheduler="DDIMScheduler",
        settings=_PLAIN,
    ),
    Sampler(
        "vp_ddpm",
        "ancestral DDPM, smaller variance, even in time",
        steps=250,
        scheduler="DDPMScheduler",
        settings=_PLAIN,
        stochastic=True,
    ),
    Sampler(
        "fpndm",
        "F-PNDM: fourth order, n + 9 evaluations (Runge-Kutta start)",
        steps=50,
        evaluations=lambda steps: steps + 9,
        scheduler="PNDMScheduler",
        settings={"timestep_spacing": "trailing", "skip_prk_steps": False, "set_alpha_to_one": True},
        fewest=4,
    ),
    Sampler(
        "deis",
        "DEIS, second order, n evaluations, even in time",
        steps=20,
        scheduler="DEISMultistepScheduler",
        settings=_PLAIN,
    ),
    Sampler(
        "unipc",
        "UniPC, second order, n evaluations, even in time",
        steps=20,
        scheduler="UniPCMultistepScheduler",
        settings=_PLAIN,
    ),
    Sampler(
        "euler_ancestral",
        "Euler ancestral, even in time",
        steps=50,
        scheduler="EulerAncestralDiscreteScheduler",
        settings=_PLAIN,
        stochastic=True,
    ),
)
