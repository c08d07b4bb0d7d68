"""What an objective of `train` is: a section of settings, found by its name.

An objective is one file: its page (equation, paper, departures), a subclass of `Objective` with its settings as
fields, and `OBJECTIVE = ThatClass`. Its task is a row of `training.tasks.by_objective`.
"""

from typing import Any, ClassVar

from diffdistill.section import Section


class Objective(Section):
    """What all objectives share; each sets `name`.

    training: what the card of a model says that it was trained by. in_rounds: whether the run is a chain of rounds of
    `round_steps`, each of which begins with the model of the best `metric` so far. exact: whether passes must be
    exact float32 (no TF32). denoises: whether it makes a denoiser, with a level law, loss weights and a null class.
    any_noise: whether the noise may be another than Gaussian.
    """

    training: ClassVar[str]
    in_rounds: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    denoises: ClassVar[bool] = True
    any_noise: ClassVar[bool] = True

    name: str

    @classmethod
    def registered_name(cls) -> str:
        return cls.model_fields["name"].default

    def check(self, config: Any) -> None:
        """ValueError, one sentence, for settings of the run (`config.schema.Train`) that do not fit the objective."""
