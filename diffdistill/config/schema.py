"""Typed settings of `train`, `distill` and `align`: every key, its type, its default, its unit.

No torch here: a config must be checked in milliseconds.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Data(Section):
    path: str = Field("builtin:fashion_mnist", description="folder, parquet, zip, npz, IDX pair, builtin:NAME or Hub id")
    split: str = Field("train", description="split of a set that has several")
    image_size: Count | None = Field(None, description="resize to this many pixels; null: images must all have one size")
    limit: Count | None = Field(None, description="use the first N images only")


class Level(Section):
    """Law of the noise level sigma (units of the data's standard deviation; images span [-1, 1])."""

    law: Literal["lognormal", "karras", "loguniform", "shifted"] = "karras"
    mean: float = Field(-1.2, description="lognormal: mean of ln sigma")
    std: Positive = Field(1.2, description="lognormal: standard deviation of ln sigma")
    sigma_min: Positive = Field(0.002, description="karras and loguniform: lowest level")
    sigma_max: Positive = Field(80.0, description="karras and loguniform: highest level")
    rho: Positive = Field(7.0, description="karras: curvature")
    u_min: Fraction = Field(0.0, description="karras: part of the range, 0 is sigma_min")
    u_max: Fraction = Field(1.0, description="karras: part of the range, 1 is sigma_max")
    shift: Positive = Field(3.0, description="shifted: resolution shift of a flow time, t' = s t / (1 + (s - 1) t)")


class Optimizer(Section):
    learning_rate: Positive = 1e-4
    betas: tuple[Fraction, Fraction] = (0.0, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive | None = Field(10.0, description="clip the global gradient norm; null: do not")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="decay of the rate after the warm-up")
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_from: Fraction = Field(0.0, description="part of the run after which the rate decays")


class Evaluation(Section):
    every: Annotated[int, Field(ge=0)] = Field(0, description="steps between evaluations of the EMA model; 0: only at the end")
    at_end: bool = True
    num_images: Annotated[int, Field(ge=2)] = 5000
    metrics: tuple[Literal["fid", "kid", "prdc"], ...] = ("fid",)
    features: str = Field("fashion_mnist", description="feature extractor: an id or a path")
    reference: str | None = Field(None, description="DATA to compare with; null: the training data")
    reference_split: str | None = Field(None, description="split of the reference; null: data.split")
    batch_size: Count = 250
    seed: int = 1000
    steps: Count | None = Field(None, description="sampling steps; null: the model's own")


class Run(Section):
    """Keys that every verb that trains has."""

    output_dir: str
    seed: Annotated[int, Field(ge=0)] = 0
    max_train_steps: Count = 1000
    train_batch_size: Count = 64
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    resume_from_checkpoint: str | None = Field(None, description="latest, or a step number")
    num_threads: Count | None = Field(None, description="CPU threads; null: all cores")
    time_limit_minutes: Positive | None = Field(None, description="stop, as if finished, after so long; schedules follow the clock")
    log_every: Count = 10
    sample_every: Annotated[int, Field(ge=0)] = Field(100, description="steps between fixed-seed grids; 0: none")
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(0, description="steps between checkpoints; 0: only at the end")
    keep_checkpoints: Count = 3
    data: Data = Data()
    evaluation: Evaluation = Evaluation()


class Network(Section):
    """A UNet2DModel to train from scratch."""

    block_out_channels: tuple[Count, ...] = (16, 64, 128)
    layers_per_block: Count = 1
    attention_levels: tuple[int, ...] = Field((-1,), description="resolutions with attention, counted from the finest; -1 is the coarsest")
    attention_head_dim: Count = 32
    norm_num_groups: Count = 8


class Train(Run):
    """`diffdistill train`: denoising score matching with EDM preconditioning (2206.00364, Table 1)."""

    network: Network = Network()
    sigma_data: Positive = Field(0.5, description="scale of the data in the preconditioning")
    level: Level = Level(law="lognormal")
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=100)
    class_dropout: Fraction = Field(0.1, description="part of the labels replaced by the null class, for guidance")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9995
