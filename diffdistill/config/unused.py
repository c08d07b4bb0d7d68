"""Settings that the chosen method, teacher or task does not use: refused, for a run without them is another one.

A rule is a row of a table: which keys, when they are idle, and why. A key that stands in a lower file than the one
that makes it idle is passed over, so that a recipe's `student.levels` is no mistake once `student.timesteps=...` is
laid over it; so is one with its default, and every key of a resolved config, which says them all.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from diffdistill.config.complaints import dotted
from diffdistill.config.student import FIRST_LEVEL
from diffdistill.config.yaml import Path, Placed, places_in
from diffdistill.divergences import get_divergence
from diffdistill.errors import Problems
from diffdistill.evaluation.metrics import metric

OVERRIDE = "override '"


@dataclass(frozen=True)
class Rule:
    """keys: dotted; a section means all in it. idle: whether settings do not use them. why: ends the sentence
    "'KEY' is not used". by: the keys that decide it.
    """

    keys: tuple[str, ...]
    idle: Callable[[Any], bool]
    why: str
    by: tuple[str, ...] = ()


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key; None where a section on the way is not there."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config


def _is(key: str, *values: Any) -> Callable[[Any], bool]:
    return lambda config: value_at(config, key) in values


def _set(key: str) -> Callable[[Any], bool]:
    return lambda config: value_at(config, key) not in (None, ())


def _unset(key: str) -> Callable[[Any], bool]:
    return lambda config: value_at(config, key) in (None, ())


def _always(config: Any) -> bool:
    return True


LAWS = {
    "lognormal": ("mean", "std"),
    "karras": ("sigma_min", "sigma_max", "rho", "u_min", "u_max"),
    "uniform": ("sigma_min", "sigma_max"),
    "loguniform": ("sigma_min", "sigma_max"),
    "shifted": ("shift",),
    "timestep": ("u_min", "u_max"),
}
"""What each law of the level reads (`process.LevelLaw`)."""


def _of_level(section: str) -> Iterator[Rule]:
    for key in dict.fromkeys(key for keys in LAWS.values() for key in keys):
        laws = tuple(law for law, keys in LAWS.items() if key not in keys)
        readers = ", ".join(law for law, keys in LAWS.items() if key in keys)
        why = f"by this law of the level, only by {readers}; set {section}.law to that, or leave it out"
        yield Rule((f"{section}.{key}",), _is(f"{section}.law", *laws), why, (f"{section}.law",))


def _of_optimizer(section: str) -> Iterator[Rule]:
    yield Rule(
        (f"{section}.decay_from",), _is(f"{section}.schedule", "constant"),
        f"where the rate stays constant; set {section}.schedule to linear or cosine", (f"{section}.schedule",),
    )  # fmt: skip


def _of_levels(section: str) -> Iterator[Rule]:
    yield Rule(
        tuple(f"{section}.{key}" for key in ("rho", "mean", "std")), _is(f"{section}.grid", "time"),
        f"where levels are even in the network's time and drawn alike; set {section}.grid=karras, or leave it out",
        (f"{section}.grid",),
    )  # fmt: skip


SHARDED = ("shard", "param_dtype", "reduce_dtype", "cpu_offload", "activation_checkpointing")
RUN = (
    Rule(
        ("checkpoint_minutes",), lambda config: config.checkpoint_every > 0,
        "where checkpoint_every counts the steps between checkpoints; set it to 0", ("checkpoint_every",),
    ),
    Rule(
        tuple(f"parallel.{key}" for key in SHARDED), _is("parallel.strategy", "ddp"),
        "where nothing is sharded; set parallel.strategy=fsdp", ("parallel.strategy",),
    ),
)  # fmt: skip
EVALUATION = (
    Rule(
        ("evaluation.reference_split",), _unset("evaluation.reference"),
        "without evaluation.reference: the training data are compared with, at data.split", ("evaluation.reference",),
    ),
    Rule(
        ("evaluation.clip",),
        lambda config: not any("clip" in metric(name).needs for name in config.evaluation.metrics),
        "without the metric clip; add it to evaluation.metrics", ("evaluation.metrics",),
    ),
)  # fmt: skip
OF_TEXTS = (
    "data.prompts", "data.caption_column", "data.prompt_cache_gb", "data.prompt_device_gb", "data.prompt_disk_gb",
    "evaluation.clip", "evaluation.rewards", "evaluation.prompts",
)  # fmt: skip
UNET = ("block_out_channels", "layers_per_block", "attention_levels", "attention_head_dim", "norm_num_groups")
TRAIN = (
    *RUN,
    Rule(
        ("level", "noise", "loss_weight", "class_dropout"), lambda config: not config.objective.denoises,
        "by a consistency model, whose objective has a law of its own and no null class; leave it out",
        ("objective.name",),
    ),
    Rule(
        ("loss_weight",), _is("objective.name", "ddo"),
        "by objective.name=ddo, whose errors are those of the network's own output; leave it out", ("objective.name",),
    ),
    Rule(
        ("noise",), _is("objective.name", "ddo"),
        "by objective.name=ddo, whose densities are of Gaussian noise; leave it out", ("objective.name",),
    ),
    Rule(
        ("noise.dimension",), _is("noise.law", "gaussian", None),
        "by Gaussian noise; set noise.law=student_t", ("noise.law",),
    ),
    Rule(
        ("objective.scale",), _is("objective.choice", "best"),
        "with objective.choice=best, which takes the highest score whatever its unit; set objective.choice=softmax",
        ("objective.choice",),
    ),
    Rule(
        ("objective.solver",), _always, "without a teacher; use method.name=consistency of distill",
    ),
    *_of_levels("objective"),
    Rule(OF_TEXTS, _always, "by train, whose models draw no texts"),
    *EVALUATION,
    *_of_level("level"),
    *_of_optimizer("optimizer"),
    Rule(
        tuple(f"network.{key}" for key in UNET), _is("network.kind", "uvit"),
        "by a U-ViT; set network.uvit, or network.kind=unet", ("network.kind",),
    ),
    Rule(
        ("network", "sigma_data"), _set("initialize_from"),
        "beside initialize_from, whose network it is; leave one of them out", ("initialize_from",),
    ),
    Rule(("network.uvit",), _is("network.kind", "unet"), "by a UNet; set network.kind=uvit", ("network.kind",)),
    Rule(
        ("network.scalelong.kappa",), _is("network.scalelong.mode", "ls", "rsqrt2"),
        "by this mode of ScaleLong; set network.scalelong.mode=cs", ("network.scalelong.mode",),
    ),
    Rule(
        ("network.scalelong.start",), _is("network.scalelong.mode", "cs", "rsqrt2"),
        "by this mode of ScaleLong; set network.scalelong.mode=ls", ("network.scalelong.mode",),
    ),
)  # fmt: skip


def _without_ratio(config: Any) -> bool:
    divergence = value_at(config, "method.divergence")
    return divergence is not None and not get_divergence(divergence).needs_ratio


DISTILL = (
    *RUN,
    Rule(
        ("method.reward.disagreement",), _is("method.reward.combine", "sum", "worst"),
        "but with method.reward.combine=uncertainty; set that", ("method.reward.combine",),
    ),
    *EVALUATION,
    *_of_level("level"),
    *_of_level("critic.level"),
    *_of_optimizer("student.optimizer"),
    *_of_optimizer("critic.optimizer"),
    *_of_optimizer("method.adversarial.optimizer"),
    *_of_optimizer("student.regression.optimizer"),
    *_of_optimizer("student.regression.muon"),
    *_of_optimizer("student.consistency.optimizer"),
    *_of_optimizer("student.consistency.muon"),
    *_of_levels("method"),
    *_of_levels("method.consistency.objective"),
    *_of_levels("student.consistency.objective"),
    Rule(
        ("level", "critic", "student.regression", "student.consistency", "student.training_input"),
        _is("method.name", "consistency", "scm"),
        "by a consistency model, which has no critic, and one loss from the start to the end; choose another "
        "method.name", ("method.name",),
    ),
    Rule(
        ("data.path", "data.split", "data.caption_column", "data.keep", "data.workers", "data.disk_cache_gb"),
        _set("data.prompts"),
        "beside data.prompts, which takes the place of images; set data.prompts=null, or leave it out",
        ("data.prompts",),
    ),
    Rule(("teacher_lora_scale",), _unset("teacher_lora"), "without teacher_lora", ("teacher_lora",)),
    Rule(
        ("student.sigma_init",), _set("student.levels"),
        "beside student.levels, whose first it would be; leave one of them out", ("student.levels",),
    ),
    Rule(
        ("student.levels", "student.sigma_init", "student.shift"), _set("student.timesteps"),
        "beside student.timesteps; leave one of them out", ("student.timesteps",),
    ),
    Rule(
        ("student.training_input",), _is("student.steps", 1),
        "by a student of one step, whose input is noise; set student.steps to 2 or more", ("student.steps",),
    ),
    Rule(
        ("method.adversarial.critic_weight",), _is("method.adversarial.features", "teacher"),
        "where the heads read the teacher; set method.adversarial.features=critic", ("method.adversarial.features",),
    ),
    Rule(
        ("method.ratio", "method.detach_ratio"), _without_ratio,
        "by a divergence without a density ratio; choose another method.divergence", ("method.divergence",),
    ),
    Rule(
        ("method.guidance", "method.guidance_rescale"), _is("method.guidance_scale", 1.0),
        "without guidance; set method.guidance_scale", ("method.guidance_scale",),
    ),
)  # fmt: skip
OF_IMAGE_TEACHERS = (
    Rule(
        (
            *OF_TEXTS, "sample_prompts", "student.timesteps", "student.shift", "student.lora", "critic.lora",
            "teacher_lora",
        ),
        _always,
        "with a teacher that draws no texts; leave it out", ("teacher",),
    ),
)  # fmt: skip
OF_TEXT_TEACHERS = (
    *(
        Rule((key,), idle, "with a text-to-image teacher, whose levels are times; set student.timesteps", ("teacher",))
        for key, idle in (
            ("student.levels", _always),
            # What it is where nothing is said stands in settings that were written down.
            ("student.sigma_init", lambda config: value_at(config, "student.sigma_init") not in (None, FIRST_LEVEL)),
        )
    ),
    Rule(
        ("method.reward.class_prompts",), _always, "with a text-to-image teacher, which has no classes; leave it out",
        ("teacher",),
    ),
    Rule(
        ("sample_classes",), _always, "with a text-to-image teacher, which has no classes; set sample_prompts",
        ("teacher",),
    ),
    Rule(
        ("data.horizontal_flip",), _always, "with a text-to-image teacher: the images' latents are encoded once",
        ("teacher",),
    ),
)  # fmt: skip
ALIGN = (
    *RUN,
    *_of_optimizer("optimizer"),
    Rule(
        ("data.prompts", "data.caption_column"), _always, "by align, whose captions come with the pairs of data.path"
    ),
    Rule(("data.workers",), _always, "by align, whose processes decode their own pairs"),
    Rule(
        ("data.held_out",), _set("data.held_out_path"),
        "beside data.held_out_path, whose pairs are measured; leave one of them out", ("data.held_out_path",),
    ),
    Rule(
        ("data.held_out_split",), _unset("data.held_out_path"), "without data.held_out_path", ("data.held_out_path",)
    ),
    Rule(
        ("evaluation.judged_images",), _unset("evaluation.judges"), "without evaluation.judges",
        ("evaluation.judges",),
    ),
    Rule(
        ("method.margin_scale", "method.margin_weight"), _set("method.beta"),
        "beside method.beta, which sets it; leave one of them out", ("method.beta",),
    ),
)  # fmt: skip


RULES = {"Train": TRAIN, "Distill": DISTILL, "Align": ALIGN}
"""By the class of the settings."""


@dataclass(frozen=True)
class Given:
    """What was given, and in which order: labels of files, lower ones first; `whole`: those of resolved configs."""

    data: Placed
    order: Sequence[str] = ()
    whole: Collection[str] = ()

    def idle(self, config: BaseModel, rules: Iterable[Rule]) -> list[str]:
        """A sentence for each key that was given and is not used, with its place."""
        places = {dotted(path): place for path, place, value in places_in(self.data) if not isinstance(value, Placed)}
        sections = {dotted(path): place for path, place, _ in places_in(self.data)}
        lines: dict[str, str] = {}
        for rule in rules:
            if not rule.idle(config):
                continue
            deciders = [(key, sections[key]) for key in rule.by if key in sections]
            for key, place in places.items():
                if key in lines or not any(key == own or key.startswith(f"{own}.") for own in rule.keys):
                    continue
                if self._label(place) in self.whole or value_at(config, key) == default_at(config, key):
                    continue
                if any(self._rank(other) > self._rank(place) for _, other in deciders):
                    continue
                told = next((f" ({other}: {there})" for other, there in deciders if there != place), "")
                lines[key] = f"{place}: '{key}' is not used {rule.why}{told}"
        return list(lines.values())

    def _label(self, place: str) -> str:
        return place if place.startswith(OVERRIDE) else place.rpartition(":")[0]

    def _rank(self, place: str) -> int:
        label = self._label(place)
        return self.order.index(label) if label in self.order else len(self.order)


def refuse_idle(resolved: Any, draws_texts: bool) -> None:
    """ConfigError for settings of a distillation that its kind of teacher does not use."""
    idle = resolved.given.idle(resolved.config, OF_TEXT_TEACHERS if draws_texts else OF_IMAGE_TEACHERS)
    if idle:
        raise Problems("\n".join(idle))


def default_at(config: BaseModel, key: str) -> Any:
    """What stands at a dotted key of these settings where nothing is said."""
    default: Any = None
    section: Any = config
    path: Path = tuple(key.split("."))
    for name in path:
        info = type(section).model_fields.get(str(name)) if isinstance(section, BaseModel) else None
        if info is None:
            return None
        inside = isinstance(default, BaseModel) and type(default) is type(section)
        default = getattr(default, str(name)) if inside else info.default
        section = getattr(section, str(name))
    return default
