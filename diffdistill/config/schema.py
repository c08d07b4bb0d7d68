"""Typed settings of `train`, `distill` and `align`: every key, its type, its default, its unit.

No torch here: a config must be checked in milliseconds.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from diffdistill.config.networks import Network
from diffdistill.config.parts import Average, Evaluations, Level, Noise, Parallel, Speed
from diffdistill.config.student import FIRST_LEVEL, Critic, Student, check_one_encoder
from diffdistill.config.watching import listed, tracker_name
from diffdistill.data.bounds import DISK_GB
from diffdistill.data.formats import allowed
from diffdistill.data.prompts import MOST_SEED
from diffdistill.errors import ConfigError
from diffdistill.evaluation.metrics import metric
from diffdistill.files import expanded
from diffdistill.loss_weights import LOSS_WEIGHTS
from diffdistill.methods import METHODS
from diffdistill.methods.base import Adversarial, Distillation, Method
from diffdistill.objectives import OBJECTIVES
from diffdistill.objectives.base import Objective
from diffdistill.objectives.denoising import Denoising
from diffdistill.optimizers import Optimizer
from diffdistill.parts.attention.names import attention_name
from diffdistill.registry import is_plugin
from diffdistill.section import Count, Fraction, OneOf, Positive, Section


class Data(Section):
    path: str = Field("builtin:fashion_mnist", description=f"images: {allowed(of_package=True)}")
    caption_column: str | None = Field(
        None, description="text models: the column of a table with the captions, as TEXT or caption; null: text"
    )
    split: str = Field("train", description="split of a set that has several")
    image_size: Count | None = Field(
        None, description="resize to this many pixels; null: images must all have one size"
    )
    limit: Count | None = Field(None, description="use the first N images only")
    horizontal_flip: bool = Field(False, description="mirror half of the training images")
    keep: Literal["auto", "memory", "disk", "source"] = Field(
        "auto",
        description="where decoded images (of a text model, latents) are: memory; disk, a cache that later runs find; "
        "source, decoded as they are drawn; auto: memory for what is decoded in seconds, else the first with room",
    )
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None, description="processes that decode images; null: one a core, 16 at most; 0: none but the run's own"
    )
    disk_cache_gb: Positive | None = Field(
        None,
        description="disk for all caches of images and latents, in 1e9 bytes; the longest unused are removed; "
        f"null: {DISK_GB:g}, but no more than half of what would be free without them",
    )
    prompts: str | None = Field(
        None, description="file of prompts (.txt, .csv, .jsonl) in place of captioned images, for a text teacher"
    )
    prompt_cache_gb: Annotated[float, Field(ge=0)] = Field(
        4.0,
        description="text models: memory for encoded prompts, the last used ones, in 1e9 bytes; the rest is "
        "encoded again when it is needed",
    )
    prompt_device_gb: Annotated[float, Field(ge=0)] = Field(
        1.0, description="text models: memory of the device for encoded prompts, the last used ones, in 1e9 bytes"
    )
    prompt_disk_gb: Annotated[float, Field(ge=0)] = Field(
        20.0, description="text models: disk for encoded prompts, which later runs read, in 1e9 bytes; 0: none"
    )


def known_metric(name: str) -> str:
    """The name of a metric, or `FILE.py:NAME` of one; ValueError where there is none."""
    try:
        row = metric(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if row.probe is not None:
        raise ValueError(
            f"metric '{row.name}' is of a finished model: diffdistill evaluate --model; leave it out here"
        )
    return name


class Evaluation(Evaluations):
    num_images: Annotated[int, Field(ge=2, le=10**9)] = 5000
    metrics: tuple[Annotated[str, AfterValidator(known_metric)], ...] = Field(
        ("fid",), description="what is measured: a metric's name as of evaluate --metrics, or FILE.py:NAME"
    )
    clip: str | None = Field(None, description="CLIP of the metric clip: a folder, builtin:NAME or Hub id")
    rewards: tuple[str, ...] = Field((), description="scores of images for their prompts; best not those optimised")
    features: str | None = Field(
        None, description="feature extractor: an id or a path; null: what fits the reference, as of evaluate"
    )
    reference: str | None = Field(None, description="DATA to compare with; null: the training data")
    reference_split: str | None = Field(None, description="split of the reference; null: data.split")
    prompts: str | None = Field(
        None,
        description="text teachers: file of prompts to draw (.txt, .csv, .jsonl); null: the captions of reference, "
        "else those of training",
    )
    batch_size: Count = 250
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 1000
    steps: Count | None = Field(None, description="sampling steps; null: the model's own")

    def figures(self) -> tuple[str, ...]:
        names = [figure.name for name in self.metrics for figure in metric(name).numbers]
        return (*names, "reward/") if self.rewards else tuple(names)


def no_half(precision: Any) -> Any:
    """`precision`; a ValueError for float16, whose range ends above the gradients of an image's elements."""
    if precision == "fp16":
        raise ValueError(
            "mixed_precision 'fp16' turns small gradients into 0, for no loss is scaled here; use bf16, which has the "
            "range of float32, or no"
        )
    return precision


def at_home(path: str) -> str:
    """A path whose `~` is the user's home folder; ValueError for `-`, which elsewhere is a stream."""
    if path == "-":
        raise ValueError("output_dir '-' is no stream here; name a folder, or ./-")
    return str(expanded(path)) if path.startswith("~") else path


def no_part_above(part: int | None, whole: int) -> None:
    """ValueError for a micro-batch larger than the batch that it is a part of."""
    if part is not None and part > whole:
        raise ValueError(f"micro_batch_size is {part} and train_batch_size {whole}; a part is at most the whole")


class Run(Section):
    """Keys that every verb that trains has."""

    output_dir: Annotated[str, AfterValidator(at_home)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    max_train_steps: Count = 1000
    train_batch_size: Count = 64
    mixed_precision: Annotated[Literal["auto", "no", "bf16"], BeforeValidator(no_half)] = Field(
        "no",
        description="precision of the networks' passes; auto: bf16 on GPUs that have it and CPUs with AMX",
    )
    attention: Annotated[str, AfterValidator(attention_name)] = Field(
        "auto",
        description="auto, sdpa, sdpa-flash, sdpa-efficient, sdpa-cudnn, sdpa-math, xformers or a diffusers backend",
    )
    resume_from_checkpoint: Literal["latest"] | Count | None = Field(None, description="latest, or a step number")
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="CPU threads; null: all cores")
    log_every: Count = 10
    print_every: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="steps between lines of progress where there is no terminal; null: about two a minute; 0: none",
    )
    report_to: Annotated[tuple[Annotated[str, AfterValidator(tracker_name)], ...], BeforeValidator(listed)] = Field(
        (), description="none, tensorboard, wandb, trackio, mlflow, all, or a list of them (docs/watching.md)"
    )
    sample_every: Annotated[int, Field(ge=0)] = Field(100, description="steps between fixed-seed grids; 0: none")
    allow_changed_inputs: bool = Field(
        False, description="resume although data, teacher, model or reward are not those of the run so far"
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between checkpoints; 0: by checkpoint_minutes"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        10.0, description="minutes between checkpoints where checkpoint_every is 0; 0: only at the end"
    )
    keep_checkpoints: Count = 3
    parallel: Parallel = Parallel()
    speed: Speed = Speed()
    data: Data = Data()
    evaluation: Evaluations = Evaluations()

    @property
    def compares(self) -> bool:
        """Whether evaluations decide how the run goes on: its start is then measured, and kept, too."""
        return self.evaluation.stop is not None

    @property
    def exact(self) -> bool:
        """Whether differences of networks are taken that must be of exact float32."""
        return False


# Attention that leaves the choice of a kernel, or names the one that can be differentiated twice.
TWICE = ("auto", "sdpa", "sdpa-math", "native", "_native_math")

SampleClasses = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=40)] | None,
    Field(description="class labels of the grids, a column each; null: the first ten"),
]


def one_of(sections: tuple[type[Section], ...]) -> Any:
    """A section of one of these classes, which its name tells."""
    return Annotated[reduce(or_, sections), Field(discriminator="name")]


if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = one_of(tuple(OBJECTIVES.rows(of_package=True).values()))


class Train(Average, Run):
    """`diffdistill train`: a teacher, by denoising score matching (2206.00364, Table 1) or another objective."""

    initialize_from: str | None = Field(
        None,
        description="diffusion model to begin with, of any process: a folder, builtin:NAME or a Hub id; its network, "
        "classes and null class are kept; null: train from scratch",
    )
    objective: AnyObjective = Denoising()
    sample_classes: SampleClasses = None
    evaluation: Evaluation = Evaluation()
    network: Network = Network()
    sigma_data: Positive = Field(0.5, description="scale of the data in the preconditioning")
    level: Level = Level(law="lognormal")
    noise: Noise = Noise()
    loss_weight: Annotated[str, OneOf(LOSS_WEIGHTS)] = Field(
        "edm",
        description="how much an error at each level counts; "
        + "; ".join(f"{weight.name}: {weight.meaning}" for weight in LOSS_WEIGHTS.values()),
    )
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=100)
    class_dropout: Fraction = Field(0.1, description="part of the labels replaced by the null class, for guidance")
    ema_half_life_images: Positive | None = Field(
        88700.0, description="images after which a step counts half in the average, in steps of any size"
    )

    @property
    def compares(self) -> bool:
        return super().compares or self.objective.in_rounds

    @property
    def exact(self) -> bool:
        return self.objective.exact

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        self.objective.check(self)
        return self


if TYPE_CHECKING:
    AnyMethod = Distillation
else:
    AnyMethod = one_of(tuple(METHODS.rows().values()))


class Distill(Run):
    """`diffdistill distill`: a student of a teacher, by distribution matching or as a consistency model."""

    teacher: str = "builtin:fashion_mnist_teacher"
    teacher_lora: str | None = Field(
        None,
        description="text teachers: a LoRA of a style or subject, added to the teacher before it is distilled: a "
        ".safetensors file, a folder with one, or a Hub id",
    )
    teacher_lora_scale: Annotated[float, Field(allow_inf_nan=False)] = Field(
        1.0, description="factor of teacher_lora, as lora_scale of diffusers"
    )
    initialize_from: str | None = Field(
        None,
        description="run folder of a first stage: its averaged student, critic and discriminator; or a model folder, "
        "such as a published consistency model: the student begins as it, the critic as the teacher",
    )
    sample_classes: SampleClasses = None
    sample_prompts: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=40)] | None
    ) = Field(None, description="text teachers: prompts of the grids, a column each; null: the first captions")
    evaluation: Evaluation = Evaluation()
    method: AnyMethod
    level: Level = Field(
        Level(law="karras", u_max=0.8), description="law of the levels of the student's loss and of the discriminator"
    )
    student: Student = Student()
    critic: Critic = Critic()
    micro_batch_size: Count | None = Field(
        None, description="images in one pass of the networks, whose gradients add up; null: train_batch_size"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    quantize: Literal["nf4", "int8"] | None = Field(
        None,
        description="text teachers with student.lora and critic.lora: pack the weights they share in 4.1 or 8 bits "
        "(diffdistill[quant]); the student is merged into the unpacked ones",
    )

    @property
    def matching(self) -> Method | None:
        """The method, where it matches distributions, with a critic; None where it makes a consistency model."""
        return self.method if isinstance(self.method, Method) else None

    @property
    def adversarial(self) -> Adversarial | None:
        return None if self.matching is None else self.matching.adversarial

    @property
    def exact(self) -> bool:
        return self.matching is not None and self.matching.float32_gap

    @property
    def consistent(self) -> bool:
        """Whether the student is trained as a consistency model: all through, at the start, or beside the matching."""
        beside = self.matching is not None and self.matching.consistency is not None
        return self.matching is None or beside or self.student.consistency is not None

    @model_validator(mode="after")
    def _first_level(self) -> Self:
        if self.student.sigma_init is None and not self.consistent:
            self.__dict__["student"] = self.student.model_copy(update={"sigma_init": FIRST_LEVEL})
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.student.regression is not None and self.student.consistency is not None:
            raise ValueError(
                "student.regression and student.consistency both say how the run starts; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _differentiates_twice(self) -> Self:
        if self.matching is None or self.matching.smoothness is None:
            return self
        for taken, is_set, instead in (
            ("student.steps", self.student.steps > 1, "1: the noise of a later step is not the image's"),
            ("attention", self.attention not in TWICE, "auto: a kernel by name (flash) has no second derivative"),
            ("gradient_checkpointing", self.gradient_checkpointing, "false: what is recomputed has no second one"),
            ("speed.compile", self.speed.compile != "none", "none: what is compiled has no second derivative"),
            (
                "parallel.strategy",
                self.parallel.strategy == "fsdp",
                "ddp: sharded weights are there for one pass back",
            ),
        ):
            if is_set:
                raise ValueError(f"method.smoothness differentiates a one-step student twice; set {taken}={instead}")
        return self

    @model_validator(mode="after")
    def _one_encoder_fits(self) -> Self:
        check_one_encoder(self)
        return self

    @model_validator(mode="after")
    def _packed_weights_are_frozen(self) -> Self:
        roles = (self.student.lora,) if self.matching is None else (self.student.lora, self.critic.lora)
        if self.quantize is not None and None in roles:
            raise ValueError(
                f"quantize={self.quantize} packs the teacher's weights, on which student and critic must then train "
                f"adapters alone; set student.lora and critic.lora, or quantize=null"
            )
        if self.quantize is not None and self.exact:
            raise ValueError(
                f"method.float32_gap wants teacher and critic exact, and quantize={self.quantize} rounds both; leave "
                f"one of them out"
            )
        return self

    @model_validator(mode="after")
    def _teacher_has_images(self) -> Self:
        adversarial = self.adversarial
        if adversarial is not None and adversarial.reals == "teacher" and self.student.regression is None:
            raise ValueError(
                "method.adversarial.reals=teacher takes the images of the pairs of student.regression, and there is "
                "none; set student.regression, or reals=data"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_are_parts(self) -> Self:
        no_part_above(self.micro_batch_size, self.train_batch_size)
        return self

    @classmethod
    def admitting(cls, data: Mapping[str, Any]) -> type[Self]:
        """The class for these settings: where `method.name` is FILE.py:CLASS, it knows that method too."""
        method = data.get("method")
        name = method.get("name") if isinstance(method, dict) else None
        if not isinstance(name, str) or not is_plugin(name):
            return cls
        fields: dict[str, Any] = {"name": (Literal[name], name)}
        named = cast(type[Distillation], create_model("Custom", __base__=METHODS.get(name), **fields))
        methods: tuple[type[Distillation], ...] = (*METHODS.rows().values(), named)
        return create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, method=(one_of(methods), ...))
