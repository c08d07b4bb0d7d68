"""What the config of a diffusers scheduler means: the noise process of a teacher, the levels of a student."""

from typing import Any, NamedTuple

from diffdistill.errors import CheckpointError
from diffdistill.pipelines.pixel.consistency import SCHEDULER, ConsistencySchedule
from diffdistill.process import EDM, VP, Flow, Process

# LCMScheduler mixes x0 with its input by factors made for consistency models. At this scale of its time they are 1 and
# 0 in float32: (t 2^30)^2 + 1/4 is (t 2^30)^2, and a power of two makes the root exact.
LCM_TIME_SCALE = 2.0**30


class Schedule(NamedTuple):
    """A stock scheduler, the levels it visits, first to last, and the arguments of the stock pipeline for them."""

    scheduler: Any
    levels: tuple[float, ...]
    call: dict[str, Any]


# What schedulers of DDPM's kind may predict; their other settings change steps, not what the output means.
VP_KINDS = ("epsilon", "v_prediction", "sample")
# Few-step models, whose D is a consistency function: only those of this package are read.
FEW_STEP = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")


def process_of(scheduler: dict[str, Any], role: str = "teacher") -> Process:
    """The noise process that the config of a diffusers scheduler describes, for a network in that role.

    CheckpointError for a scheduler, or a setting, under which a network's output means something that is not read.
    Settings that choose a sampler's steps alone (timestep_spacing, shift, clip_sample, thresholding, Karras' levels
    ...) are left out: D(x, sigma) does not depend on them.
    """
    name, kind = scheduler.get("_class_name", ""), scheduler.get("prediction_type", "epsilon")
    if name in FEW_STEP and scheduler.get("timestep_scaling") != LCM_TIME_SCALE:
        raise CheckpointError(
            f"{name} belongs to a few-step model, whose D(x_t, sigma) is not the posterior mean E[x0 | x_t]; of those "
            f"only students made by diffdistill and {SCHEDULER} are read"
        )
    if name == SCHEDULER:
        return ConsistencySchedule.of(scheduler).process(role)
    if name.startswith("EDM"):
        return _edm(scheduler, kind)
    if name.startswith("FlowMatch"):
        if scheduler.get("invert_sigmas"):
            raise CheckpointError(
                f"{name} has invert_sigmas, time running from data to noise, which is not read; give a flow whose "
                f"time is 0 at the data"
            )
        return Flow(float(scheduler.get("num_train_timesteps", 1000)))
    return _vp(name, scheduler, kind)


def _edm(scheduler: dict[str, Any], kind: str) -> EDM:
    if kind != "epsilon":
        raise CheckpointError(f"{scheduler['_class_name']} with prediction type '{kind}' is not read; use epsilon")
    usual = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    scale, low, high = (scheduler.get(key, value) for key, value in usual.items())
    return EDM(scale, 1.0, low, high)


def _vp(name: str, scheduler: dict[str, Any], kind: str) -> VP:
    import diffusers

    cls = getattr(diffusers, name, None)
    try:
        stock: Any = cls.from_config(scheduler) if cls is not None else None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"scheduler '{name}' could not be made ({reason}); mend its config") from error
    if not hasattr(stock, "alphas_cumprod"):
        raise CheckpointError(
            f"scheduler '{name}' is unknown; EDM, CMStochasticIterative, FlowMatch and DDPM-like schedulers are read"
        )
    if kind == "flow_prediction" or scheduler.get("use_flow_sigmas"):
        raise CheckpointError(
            f"{name} samples a flow (prediction_type '{kind}', use_flow_sigmas), whose schedule is not that of its "
            f"betas; give the folder a FlowMatchEulerDiscreteScheduler"
        )
    if kind not in VP_KINDS:
        raise CheckpointError(f"prediction type '{kind}' of {name} is not read; it must be {', '.join(VP_KINDS)}")
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise CheckpointError(
            f"{name} has timestep_type '{scheduler['timestep_type']}', which tells the network ln(sigma) / 4 in place "
            f"of a training step; only discrete is read"
        )
    signal = stock.alphas_cumprod
    # Up to 1e-6: with zero terminal SNR some stock schedulers put 2^-24 after a smaller one.
    falls = (signal.diff() <= 1e-6).all() and 1 >= signal[0] > 0 <= signal[-1] < 1
    if not (signal.isfinite().all() and falls):
        raise CheckpointError(
            f"the betas of {name} make no schedule, along which the signal falls from 1 towards 0; mend its config"
        )
    return VP(signal, kind)
