"""Sections that several verbs have: an average of weights, adapters, evaluations and an early stop."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffdistill.section import Count, Curvature, Fraction, Positive, Section


class Average(Section):
    """The moving average of the weights: how long it remembers, in images, or in steps, whatever the batch."""

    ema_half_life_images: Positive | None = Field(
        4400.0, description="images after which a step counts half in the average, in steps of any size"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="decay of the average a step, whatever its batch, in place of ema_half_life_images"
    )

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.ema_decay is not None and "ema_half_life_images" not in self.model_fields_set:
            self.__dict__["ema_half_life_images"] = None  # the default gives way
        decay, half_life = self.ema_decay, self.ema_half_life_images
        if decay is not None and half_life is not None:
            raise ValueError(
                f"ema_decay={decay:g} and ema_half_life_images={half_life:g} both say how long the average remembers; "
                f"set one of them to null"
            )
        if decay is None and half_life is None:
            raise ValueError(
                "neither ema_decay nor ema_half_life_images says how long the average remembers; give one of them "
                "(ema_decay=0: no average)"
            )
        return self

    def ema_decay_for(self, batch: int) -> float:
        """The decay rho of a step of `batch` images: 0.5^(batch / half-life), or `ema_decay`.

        batch: the images of all processes and micro-batches that one step of the optimiser sees. A batch of kappa
        times as many has rho^kappa (2307.13813, the scaling rule of averages).
        """
        if self.ema_half_life_images is None:
            assert self.ema_decay is not None  # _one_memory has refused it
            return self.ema_decay
        return 0.5 ** (batch / self.ema_half_life_images)


class Level(Section):
    """Law of the noise level sigma (units of the data's standard deviation; images span [-1, 1])."""

    law: Literal["lognormal", "karras", "uniform", "loguniform", "shifted", "timestep"] = "karras"
    mean: float = Field(-1.2, description="lognormal: mean of ln sigma")
    std: Positive = Field(1.2, description="lognormal: standard deviation of ln sigma")
    sigma_min: Positive | None = Field(
        None, description="karras, uniform and loguniform: lowest level; null: the network's own"
    )
    sigma_max: Positive | None = Field(
        None, description="karras, uniform and loguniform: highest level; null: the network's own"
    )
    rho: Curvature = Field(7.0, description="karras: curvature")
    u_min: Fraction = Field(0.0, description="karras and timestep: part of the range, 0 is the lowest level")
    u_max: Fraction = Field(1.0, description="karras and timestep: part of the range, 1 is the highest level")
    shift: Positive = Field(3.0, description="shifted: resolution shift of a flow time, t' = s t / (1 + (s - 1) t)")


class Noise(Section):
    """Law of the noise: Gaussian, or Student's t with D degrees of freedom, PFGM++ (2302.04265)."""

    law: Literal["gaussian", "student_t"] | None = Field(
        None, description="null: that of initialize_from, gaussian without it; student_t: heavy tails, by dimension"
    )
    dimension: Annotated[float, Field(gt=2)] | None = Field(
        None, description="student_t: D, above 2, such as 128 or 2048; for a large D it is gaussian"
    )

    @model_validator(mode="after")
    def _whole_law(self) -> Self:
        if self.law == "student_t" and self.dimension is None:
            raise ValueError("law=student_t needs its dimension; give one above 2, such as dimension=2048")
        return self


class Lora(Section):
    """Low-rank adapters (2106.09685)."""

    rank: Count = 8
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="ends of the names of the layers adapted"
    )


class EarlyStop(Section):
    """Ends a run whose held-out figure gets worse, as where a reward is exploited, and keeps its last good model."""

    metric: str = Field(description="figure to watch, of those measured: fid, recall, clip, reward/NAME, ...")
    margin: Annotated[float, Field(ge=0)] = Field(
        description="how much worse than the best so far is still good, in the figure's own units"
    )
    patience: Count = Field(1, description="evaluations in a row, worse than that, that end the run")


class Evaluations(Section):
    """When a run measures its model, and when what it finds ends the run."""

    every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between evaluations of the model to keep; 0: only at the end"
    )
    at_end: bool = True
    stop: EarlyStop | None = Field(None, description="end the run early, at its last good model; null: do not")

    def figures(self) -> tuple[str, ...]:
        """Names of what is measured; one that ends in `/` begins the names of several."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _watched_figure_is_measured(self) -> Self:
        if self.stop is None:
            return self
        if not self.every:
            raise ValueError("stop compares evaluations, and every is 0; set every to the steps between them")
        metric, figures = self.stop.metric, self.figures()
        if not any(metric == name or (name.endswith("/") and metric.startswith(name)) for name in figures):
            known = ", ".join(name + "NAME" if name.endswith("/") else name for name in figures)
            raise ValueError(f"stop.metric is '{metric}', and what is measured is {known}; watch one of these")
        return self


Role = Literal["student", "critic", "teacher", "text_encoders"]


class Parallel(Section):
    """How several processes share a run (docs/scaling.md): each holds all networks, or a part of every weight."""

    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="ddp: all weights everywhere, gradients summed; fsdp: weights, gradients, moments and averages "
        "sharded; auto: ddp unless the states would fill more than three quarters of the memory of a process",
    )
    shard: tuple[Role, ...] = Field(
        ("student", "critic", "teacher"), min_length=1,
        description="fsdp: whose weights are sharded; student: the network that is trained, and its average; teacher: "
        "frozen networks, and what adapters stand on",
    )  # fmt: skip
    param_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="fsdp: weights in the passes; auto: bfloat16 where mixed_precision is bf16"
    )
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="fsdp: gradients while they are summed"
    )
    cpu_offload: bool = Field(False, description="fsdp: weights, gradients and moments wait in the CPU's memory")
    activation_checkpointing: bool = Field(
        False, description="fsdp: recompute the activations of each block: less memory, a third more time"
    )


class Speed(Section):
    """How a run computes the same faster (docs/performance.md). auto changes nothing on a CPU."""

    compile: Literal["none", "regional"] = Field(
        "none", description="regional: torch.compile of the blocks that repeat; the first steps take minutes"
    )
    channels_last: Literal["auto"] | bool = Field(
        "auto", description="images with their channels side by side in memory; auto: on CUDA"
    )
    tf32: Literal["auto"] | bool = Field(
        "auto",
        description="float32 products and convolutions on CUDA by TF32, 10 bits after the point; auto: where the card "
        "has it, unless method.float32_gap is set",
    )
    cudnn_benchmark: Literal["auto"] | bool = Field(
        "auto", description="let cuDNN try its convolutions and keep the fastest; auto: on CUDA"
    )
