"""Sections of the student and of its critic in a distillation."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from diffdistill.config.parts import Average, Level, Lora
from diffdistill.methods.objectives import ConsistencyStart
from diffdistill.optimizers import Muon, Optimizer
from diffdistill.section import Count, Positive, Section


class Regression(Section):
    """DMD's regression on the teacher's trajectories (2311.18828, eq. 9), as a first phase of the run."""

    steps: Count = Field(
        1000,
        description="the first steps of the run; as many as max_train_steps: a first stage; more: all but one",
    )
    pairs: Count = Field(10000, description="pairs of noise and the image the teacher's solver makes of it")
    solver_steps: Count = Field(5, description="steps of DPM-Solver++(2M) that make a pair")
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=20)
    muon: Muon | None = Field(
        None, description="Muon for the weights of inner layers, beside AdamW for the rest; null: AdamW for all"
    )


class RoleLora(Lora):
    """Low-rank adapters on the teacher's frozen weights, which all networks of the run then share."""

    alpha: Positive | None = Field(None, description="the adapters' product is scaled by alpha / rank; null: by 1")


class SharedEncoder(Section):
    """TiUE (2505.21960): one pass of a UNet's encoder, K of its decoder at once, K steps of DDIM on what they give."""

    decoders: Annotated[int, Field(ge=2, le=100)] = Field(
        4, description="K, at the levels of a student of so many steps; of a text teacher a divisor of its 1000 times"
    )
    noise_weight: Annotated[float, Field(ge=0)] = Field(
        0.1, description="weight, beside matching, of the KL from N(0, 1) of the noise that each predicts; 0: none"
    )


def check_one_encoder(config: Any) -> None:
    """ValueError for settings of a distillation that `student.one_encoder` cannot stand beside."""
    student = config.student
    if student.one_encoder is None:
        return
    for taken, is_set, instead in (
        ("student.steps", student.steps > 1, "1: its steps are those of the decoders"),
        ("student.levels", student.levels is not None, "null: the decoders' follow from student.sigma_init"),
        ("student.timesteps", student.timesteps is not None, "null: the decoders' are DDIM's"),
        ("student.shift", student.shift is not None, "null: the decoders' times are DDIM's"),
        ("student.lora", student.lora is not None, "null: whole weights are trained"),
        ("method.name", config.matching is None, "dmd2 or another that matches: no consistency model has decoders"),
        ("student.consistency", student.consistency is not None, "null: no consistency model has decoders"),
        ("method.consistency", config.consistent, "null: no consistency model has decoders"),
        ("speed.compile", config.speed.compile != "none", "none: what is compiled is not cut in two"),
        ("parallel.strategy", config.parallel.strategy == "fsdp", "ddp: sharded weights are there for one pass"),
    ):
        if is_set:
            raise ValueError(
                f"student.one_encoder makes one draw by decoders of one encoder pass; set {taken}={instead}"
            )


FIRST_LEVEL = 2.5  # of a student that matches distributions (2404.04057)


class Student(Average):
    steps: Count = Field(1, description="sampling steps K")
    levels: tuple[Positive, ...] | None = Field(
        None,
        description="K input levels, descending; null: sigma_init and the stock spacing below it; of a teacher "
        "with training steps the nearest of them",
    )
    sigma_init: Positive | None = Field(
        None,
        description="input level of the first step, x = sigma_init * z; null: 2.5, of a consistency model the "
        "teacher's highest",
    )
    timesteps: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="text teachers: K times of the network (of 1000), descending; null: those that its stock "
        "scheduler visits in K steps",
    )
    shift: Positive | None = Field(
        None,
        description="text teachers: times u = 1, 1 - 1/K, ... of the student as s u / (1 + (s - 1) u), of the last: "
        "above 1 towards noise (2403.03206, eq. 23); null: those that its stock scheduler visits",
    )
    training_input: Literal["backward_simulation", "noised_data"] = Field(
        "backward_simulation",
        description="what steps after the first are trained on: the student's own samples, or noised images",
    )
    optimizer: Optimizer = Optimizer()
    lora: RoleLora | None = Field(None, description="text teachers: train adapters only; null: all weights")
    regression: Regression | None = Field(
        None, description="start by regression on the teacher's trajectories; null: start as the teacher's denoiser"
    )
    one_encoder: SharedEncoder | None = Field(
        None, description="UNets: make the one draw by several decoders over one encoder pass; null: by one pass"
    )
    consistency: ConsistencyStart | None = Field(
        None, description="start by consistency distillation, in place of regression; null: none"
    )

    @model_validator(mode="after")
    def _muon_has_whole_weights(self) -> Self:
        starts = {"regression": self.regression, "consistency": self.consistency}
        for name, start in starts.items():
            if self.lora is not None and start is not None and start.muon is not None:
                raise ValueError(
                    f"{name}.muon is for the whole weights of inner layers, and with lora only adapters are trained; "
                    f"set student.{name}.muon=null, or student.lora=null"
                )
        return self


class Critic(Section):
    updates_per_step: Count = Field(2, description="critic (and discriminator) updates per student update")
    level: Level = Field(Level(law="lognormal"), description="law of the levels of its denoising loss")
    lora: RoleLora | None = Field(None, description="text teachers: train adapters only; null: all weights")
    optimizer: Optimizer = Optimizer()
