"""Settings of optimisers, and the table of them: a name, and what builds it (in `training/optim`, with torch)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from diffdistill.errors import ConfigError
from diffdistill.registry import is_plugin, load
from diffdistill.section import Fraction, OneOf, Positive, Section

# name: `module:function` that makes it of (parameters, settings). A new optimiser is a row here
# and its function, or `FILE.py:NAME` of the function.
OPTIMIZERS = {
    "adamw": "diffdistill.training.optim.adamw:build",
    "adamw8bit": "diffdistill.training.optim.adamw8bit:build",
    "adafactor": "diffdistill.training.optim.adafactor:build",
}


class Rate(Section):
    """A learning rate over the steps, and the bound of the gradient."""

    learning_rate: Positive = 1e-4
    max_grad_norm: Positive | None = Field(10.0, description="clip the global gradient norm; null: do not")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay of the rate after the warm-up"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_from: Fraction = Field(0.0, description="part of the run after which the rate decays")


class Optimizer(Rate):
    """AdamW; adamw8bit (2110.02861), whose moments take a byte each in place of four, by bitsandbytes; or Adafactor
    (1804.04235), whose state is a five-hundredth of SDXL's weights, AdamW's twice the weights.

    Adafactor's learning rate is a part of each weight tensor's root mean square: one like 1e-3, not 1e-5.
    """

    name: Annotated[str, OneOf(OPTIMIZERS, files=True)] = Field(
        "adamw", description="or FILE.py:NAME, a function of (parameters, these settings) that makes one"
    )
    betas: tuple[Fraction, Fraction] = (0.0, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    @property
    def builder(self) -> str:
        return OPTIMIZERS.get(self.name, self.name)

    @field_validator("name")
    @classmethod
    def _makes_one(cls, name: str) -> str:
        try:
            if is_plugin(name) and not callable(load(name)):
                raise ConfigError(f"'{name}' is no optimiser; it must be a function of (parameters, settings)")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _no_first_moment(self) -> "Optimizer":
        if self.name == "adafactor" and self.betas[0] != 0:
            raise ValueError("adafactor keeps no first moment; set betas to [0.0, 0.999]")
        return self


class Muon(Rate):
    """Muon, for weight matrices and kernels: their updates are orthogonal."""

    learning_rate: Positive = 6e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    builder: ClassVar[str] = "diffdistill.training.optim.muon:build"
