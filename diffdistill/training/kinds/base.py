"""What differs between teachers of images and teachers that draw texts, when one is distilled."""

from pathlib import Path
from typing import Any, Protocol

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.training.device import Device
from diffdistill.training.observers import Monitor

Roles = tuple[Denoiser, Denoiser | None]
"""`(student, critic)`; a consistency model has no critic."""


class Kind(Protocol):
    """A kind of teacher. All raise ConfigError for settings that do not fit it."""

    def data(self, config: Distill, teacher: Any) -> Any:
        """What it is distilled on: a set with `draw(size, seed, step, flip) -> (x0 or latents, conditions)`."""

    def start(self, config: Distill, teacher: Any) -> Denoiser | None:
        """The model that `initialize_from` names, checked against the teacher; None for a run folder, or for nothing.

        A distilled student or a consistency model of others: its network and its process become the student's, the
        critic is the teacher's copy all the same.
        """

    def levels(self, config: Distill, teacher: Any, start: Denoiser | None) -> tuple[float, ...]:
        """The levels of the run's student, which begins as `start`, or as the teacher; checked against both."""

    def roles(
        self, config: Distill, teacher: Any, about: dict[str, object], device: Device, start: Denoiser | None
    ) -> Roles:
        """`(student, critic)`, both starting as the teacher (without its null class), all in evaluation mode.

        start: a model that the student begins as in the teacher's place, with its own preconditioning. about: the
        student's metadata.

        The score gap is a difference of two networks, and a critic that learned with dropout and speaks without it, or
        a student whose images come from another network at each pass, is not what the equations mean.
        """

    def monitor(self, config: Distill, data: Any, teacher: Any) -> Monitor[Denoiser]:
        """How a run looks at its model and measures it."""


NOISE_ALONE = 10.0  # times the spread of the data: a level whose input differs from noise by half a per cent


def check_noise_alone(first: float, model: Denoiser, remedy: str) -> None:
    """ConfigError, which ends with what to do, for a first level at which a consistency model's input is not noise
    alone. In `remedy`, LEAST and MOST stand for the bounds of that level.
    """
    spread = getattr(model.process, "sigma_data", 1.0)
    if first < NOISE_ALONE * spread:
        remedy = remedy.replace("LEAST", f"{NOISE_ALONE * spread:g}").replace("MOST", f"{model.sigma_max:g}")
        raise ConfigError(
            f"a consistency model starts from noise alone, and at student level {first:g} images of spread "
            f"{spread:g} still show; {remedy}"
        )


def names_model(path: str) -> bool:
    """Whether `initialize_from` is a model folder, and not the folder of a run."""
    return (Path(path) / "model_index.json").is_file()


def no_text_start(path: str) -> str:
    return (
        f"initialize_from '{path}' is a model folder, which students of text-to-image teachers cannot begin from; "
        f"give the run folder of a first stage"
    )


def check_checkpointing(config: Distill, *networks: Any) -> None:
    """ConfigError where a network cannot do what `gradient_checkpointing` asks."""
    for network in networks:
        if config.gradient_checkpointing and not getattr(network, "_supports_gradient_checkpointing", False):
            raise ConfigError(
                f"gradient_checkpointing is on, and {type(network).__name__} cannot compute its activations anew; "
                f"set it to false"
            )
