"""Consistency models of others: a `ConsistencyModelPipeline` folder that no run of this package wrote.

Its network is no denoiser. D(x, sigma) is where the probability-flow trajectory through x ends, with D(x, sigma_min) =
x (2303.01469, eq. 5), so the folder is read as a student: sampled in one step from sigma_max, or in K at the levels
that its own scheduler visits, and saved again with that scheduler.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.process import EDM

SCHEDULER = "CMStochasticIterativeScheduler"
KEY = "consistency"  # in a model's metadata and in diffdistill.json


@dataclass(frozen=True)
class ConsistencySchedule:
    """The settings of `CMStochasticIterativeScheduler`, all that decides what the stock pipeline draws."""

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    s_noise: float = 1.0
    rho: float = 7.0
    clip_denoised: bool = True

    @classmethod
    def of(cls, config: dict[str, Any]) -> "ConsistencySchedule":
        """From a scheduler_config.json; what it leaves out has diffusers' default."""
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})

    def process(self, role: str) -> EDM:
        """A teacher's D has no boundary, a student's that of its scheduler: 0 where it began as a denoiser."""
        boundary = self.sigma_min if role == "student" else 0.0
        return EDM(self.sigma_data, 1000.0, self.sigma_min, self.sigma_max, boundary)

    def levels(self, steps: int) -> tuple[float, ...]:
        """The `steps` levels that the stock pipeline visits for `num_inference_steps=steps`, from sigma_max down.

        Every (N // steps)-th of N levels evenly spaced in sigma^(1/rho) (2206.00364, eq. 5), N = num_train_timesteps.
        """
        if not 1 <= steps <= self.num_train_timesteps:
            raise ConfigError(f"steps is {steps}; this consistency model takes 1 to {self.num_train_timesteps}")
        high, low = (sigma ** (1 / self.rho) for sigma in (self.sigma_max, self.sigma_min))
        ramp = [k * (self.num_train_timesteps // steps) / (self.num_train_timesteps - 1) for k in range(steps)]
        return tuple((high + part * (low - high)) ** self.rho for part in ramp)

    def scheduler(self) -> Any:
        from diffusers import CMStochasticIterativeScheduler

        return CMStochasticIterativeScheduler(**asdict(self))


def described(config: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata` of a folder (its diffdistill.json), completed for a consistency model that another package wrote.

    config: the folder's scheduler_config.json.
    """
    if config.get("_class_name") != SCHEDULER and KEY in metadata:
        raise CheckpointError(
            f"its record tells of a consistency model, whose scheduler is {SCHEDULER}, and it has another; make or "
            f"fetch the folder again"
        )
    if config.get("_class_name") != SCHEDULER or (metadata and KEY not in metadata):
        return metadata
    try:
        schedule = ConsistencySchedule.of(config)
        return metadata | {"role": "student", "levels": list(schedule.levels(1)), KEY: asdict(schedule)}
    except (TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the settings of its {SCHEDULER} do not fit together ({error}); make or fetch the folder again"
        ) from error
