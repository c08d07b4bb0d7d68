"""Which adapters to train: a search over the layers of `student.lora.targets`, judged by two figures.

MemControl (2405.19458): what is trained decides how well a model fits and how much it copies; so a search switches
each kind of layer on or off, trains, and measures both, here FID and the share of images that are no copies. There is
no best choice, only choices that no other beats in both figures. The search is Optuna's, and so is its memory, a
database in its folder. A choice is a run in a folder of its own name: what is finished is never run again.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.cli.front import checked_settings, verbs
from diffdistill.cli.sweep import child
from diffdistill.errors import ConfigError, DiskError, Interrupted, Preempted
from diffdistill.evaluation.figures import figure_of, numbers_of
from diffdistill.files import read_json
from diffdistill.training.lock import AT_WORK, locked
from diffdistill.training.signals import stop_requests

DATABASE, NAME, FAILED = "optuna.db", "adapters", "failed"
STOPS = {error.exit_code: error for error in (Preempted, Interrupted)}


@dataclass(frozen=True)
class Search:
    """recipe, overrides: of `distill`, whose `student.lora` is set. candidates: ends of names of layers, each on or
    off. figures: of the run's evaluation, that have a better direction. out: the folder of the runs.

    >>> search = Search("emoji/one_step", ("student.lora.rank=4",), ("to_q", "to_v"), ("fid", "neighbours"), Path("s"))
    >>> search.command(("to_q",))[-4:]  # doctest: +NORMALIZE_WHITESPACE
    ['student.lora.rank=4', 'student.lora.targets=["to_q"]', 'output_dir=s/to_q', 'resume_from_checkpoint=latest']
    """

    recipe: str
    overrides: tuple[str, ...]
    candidates: tuple[str, ...]
    figures: tuple[str, ...]
    out: Path

    def settings(self, chosen: Sequence[str]) -> list[str]:
        """Those of a choice, beside where it lies."""
        return [*self.overrides, f"student.lora.targets={json.dumps(list(chosen))}"]

    def folder(self, chosen: Sequence[str]) -> Path:
        return self.out / "+".join(chosen)

    def command(self, chosen: Sequence[str]) -> list[str]:
        place = [f"output_dir={self.folder(chosen)}", "resume_from_checkpoint=latest"]
        return [sys.executable, "-m", "diffdistill", "distill", self.recipe, *self.settings(chosen), *place]

    def directions(self) -> list[str]:
        """Of each figure, as Optuna says it; ConfigError for one that has none."""
        found = {name: figure_of(name).lower_is_better for name in self.figures}
        if without := [name for name, lower in found.items() if lower is None]:
            raise ConfigError(f"figure '{without[0]}' has no better direction; name one that has, such as fid")
        return ["minimize" if lower else "maximize" for lower in found.values()]

    def check(self) -> None:
        """ConfigError where nothing could come of it, before the first run."""
        if len(set(self.candidates)) < 2 or len(set(self.candidates)) < len(self.candidates):
            raise ConfigError(
                f"the candidates are {', '.join(self.candidates)}; name two kinds of layers or more, each once"
            )
        if any("/" in name for name in self.candidates):
            raise ConfigError(f"a candidate is the end of a layer's name, such as to_q; got {self.candidates}")
        resolved = checked_settings(verbs()["distill"], self.recipe, self.settings(self.candidates))
        measured = resolved.config.evaluation.figures()
        if missing := [name for name in self.figures if name not in measured]:
            raise ConfigError(
                f"figure '{missing[0]}' is not measured, only {', '.join(measured)}; add it to evaluation.metrics"
            )
        self.directions()

    def scores(self, chosen: Sequence[str]) -> list[float] | None:
        """The figures of a finished run; None where it is not finished, or its file damaged, and where one could not
        be measured.
        """
        try:
            numbers = numbers_of(read_json(self.folder(chosen) / "evaluation.json")["student"])
            found = [float(numbers[name]) for name in self.figures]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if all(map(math.isfinite, found)) else None


Train = Callable[[Search, Sequence[str]], list[float] | None]
"""Figures of a choice, which it trains where they are not there; None where the run failed."""


def search_adapters(search: Search, trials: int, seed: int = 0) -> list[tuple[tuple[str, ...], list[float]]]:
    """Search until so many trials are there, over all sittings; the choices that none beats, with their figures.

    ConfigError without Optuna, and for a folder of another search; Interrupted or Preempted where it is asked to end.
    """
    search.check()
    if trials < 1:
        raise ConfigError(f"a search of {trials} trials finds nothing; give 1 or more")
    search.out.mkdir(parents=True, exist_ok=True)
    with stop_requests() as stop, locked(search.out):
        stop.sentence = f"stopped; give the same command again to go on with '{search.out}'"

        def train(search: Search, chosen: Sequence[str]) -> list[float] | None:
            if search.scores(chosen) is None:
                print(f"run {search.folder(chosen).name}", flush=True)
                code, told = child(search.command(chosen), stop)
                if code in STOPS:
                    raise STOPS[code](stop.sentence)
                if code == ConfigError.exit_code and AT_WORK in told:  # of a search that was killed
                    raise ConfigError(
                        f"a run in '{search.folder(chosen)}' is still at work, see above; wait until it has ended, "
                        f"and give the same command again"
                    )
                if code == DiskError.exit_code:  # no fault of the choice
                    raise DiskError(f"no room for a run, see above; make some, and go on in '{search.out}'")
            return search.scores(chosen)

        return front(study_of(search, seed), search, trials, train)


def study_of(search: Search, seed: int) -> Any:
    """The study in the folder's database, made or gone on with."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a search needs optuna: pip install 'diffdistill[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=NAME, storage=f"sqlite:///{search.out / DATABASE}", directions=search.directions(),
        load_if_exists=True,
    )  # fmt: skip
    # Each sitting goes on with other numbers than the last began with.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=5)
    asked = [search.recipe, list(search.overrides), list(search.candidates), list(search.figures)]
    if study.user_attrs.get("asked", asked) != asked:
        raise ConfigError(f"'{search.out}' holds the search of {study.user_attrs['asked']}; name another folder")
    study.set_user_attr("asked", asked)
    return study


def front(study: Any, search: Search, trials: int, train: Train) -> list[tuple[tuple[str, ...], list[float]]]:
    """Ask the study and tell it until it has so many trials, finished or failed; then what none of them beats.

    A trial that was cut short does not count, and its choice comes first. ConfigError where no run came to its end.
    """
    from optuna.trial import TrialState

    for cut in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(cut.number, state=TrialState.FAIL)
        study.enqueue_trial(cut.params)
    while sum(one.state == TrialState.COMPLETE or FAILED in one.user_attrs for one in study.trials) < trials:
        trial = study.ask()
        chosen = tuple(name for name in search.candidates if trial.suggest_categorical(name, [True, False]))
        values = train(search, chosen) if chosen else None  # no adapter at all is no run
        if values is None:
            trial.set_user_attr(FAILED, True)
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, values)
    best = {tuple(name for name in search.candidates if one.params[name]): one.values for one in study.best_trials}
    if not best:
        raise ConfigError(
            f"none of the {trials} runs in '{search.out}' came to its end, each told why: mend that, and search anew "
            f"in another folder"
        )
    return sorted(best.items(), key=lambda row: row[1])
