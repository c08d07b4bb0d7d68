"""Epsilon Scaling inside a scheduler's `step`: scale what the network said, then let the solver do what it does."""

from typing import Any

from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.families import coordinates, family, position, solver_step, table_coordinates
from diffdistill.parts.exposure_bias.scaling import scale_denoised, scale_model_output
from diffdistill.parts.exposure_bias.schedule import EpsilonScaleSchedule


class EpsilonScaling:
    """What one scheduler does to one network output: `eps -> eps / lambda` (2308.15321, eq. 10)."""

    def __init__(self, schedule: EpsilonScaleSchedule, flow_mode: str):
        if flow_mode not in ("residual", "exact"):
            raise ConfigError(f"flow_mode '{flow_mode}' is unknown; use residual or exact")
        self.schedule = schedule
        self.flow_mode = flow_mode

    def __call__(
        self, scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        """The scaled output, or `model_output` itself where lambda is 1; a denoised image in `extra` is scaled too."""
        if extra.get("per_token_timesteps") is not None:
            return self._per_token(model_output, sample)
        index = position(scheduler, timestep)
        kind = family(scheduler)
        alpha, s = table_coordinates(scheduler, int(timestep)) if kind == "table" else coordinates(scheduler, index)
        step, num_steps = solver_step(scheduler, index)
        lam = self.schedule(index=step, num_steps=num_steps, alpha=alpha, s=s)
        if extra.get("pred_original_sample") is not None:  # EDMEulerScheduler takes a denoised image in place of F
            extra["pred_original_sample"] = scale_denoised(extra["pred_original_sample"], sample, lam)
        config = scheduler.config
        return scale_model_output(
            model_output,
            sample,
            lam,
            alpha,
            s,
            config.get("prediction_type", "flow"),
            sigma_data=config.sigma_data if kind == "edm" else None,
            flow_mode=self.flow_mode,  # type: ignore[arg-type]  # checked above
        )

    def _per_token(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """Video models that noise each token differently have no single level: only a plain division has a meaning."""
        if self.schedule.kind != "constant" or self.flow_mode != "residual":
            raise ConfigError(
                "a pipeline with per-token time steps has no single noise level; use a constant b with "
                "flow_mode='residual'"
            )
        return scale_model_output(model_output, sample, self.schedule.b, 0.0, 1.0, "flow")
