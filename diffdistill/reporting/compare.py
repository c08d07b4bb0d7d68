"""Several runs beside each other: settings that differ, figures with their spread over seeds, time; as data."""

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.config.yaml import flow, parse
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.evaluation.figures import Value, features_of, label_of, values_of
from diffdistill.files import parse_json
from diffdistill.reporting.rundata import RunData, read_run
from diffdistill.reporting.tables import protocol_words

# Where a run lies, which seed it has and how it was looked at: no setting that is compared.
PASSED_OVER = {
    "output_dir", "seed", "resume_from_checkpoint", "allow_changed_inputs", "num_threads", "log_every", "print_every",
    "report_to", "sample_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints",
}  # fmt: skip
MODELS = ("student", "model", "aligned")
MOST_RUNS, LONGEST = 64, 60


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone. settings: those that are not the same in all groups, by dotted key."""

    name: str
    runs: list[RunData]
    settings: dict[str, str]

    @property
    def figures(self) -> dict[str, "Spread"]:
        """Every figure that one of the runs has, in the order of the first."""
        values = [values_of(result_of(run)) for run in self.runs]
        names = dict.fromkeys(name for one in values for name in one)
        return {name: spread([one[name] for one in values if name in one]) for name in names}

    @property
    def seconds(self) -> "Spread":
        return spread([Value(run.seconds) for run in self.runs])

    @property
    def seeds(self) -> list[str]:
        return [settings_of(run).get("seed", "?") for run in self.runs]


@dataclass(frozen=True)
class Spread:
    """mean: of `count` seeds. deviation: their standard deviation, None of one seed. error: the mean of the figures'
    own standard errors, which says nothing of seeds.
    """

    mean: float
    count: int
    deviation: float | None
    error: float | None

    @property
    def more(self) -> float | None:
        """What stands behind ±."""
        return self.error if self.deviation is None else self.deviation


def spread(values: Sequence[Value]) -> Spread:
    """Mean and standard deviation (of n - 1) over seeds.

    >>> spread([Value(1.0), Value(2.0), Value(3.0)])
    Spread(mean=2.0, count=3, deviation=1.0, error=None)
    """
    numbers, errors = [value.value for value in values], [value.error for value in values if value.error is not None]
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), len(numbers), deviation, statistics.fmean(errors) if errors else None)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and what is odd about them. protocol: of the first run that was measured, in words."""

    groups: list[Group]
    protocol: dict[str, str]
    odd: dict[str, str]  # by the name of a run folder: what of its protocol is another

    @property
    def runs(self) -> list[RunData]:
        return [run for group in self.groups for run in group.runs]

    @property
    def settings(self) -> list[str]:
        """Keys that differ between groups."""
        return list(dict.fromkeys(key for group in self.groups for key in group.settings))

    @property
    def figures(self) -> list[str]:
        return list(dict.fromkeys(name for group in self.groups for name in group.figures))

    def label(self, figure: str) -> str:
        first = next(result_of(run) for run in self.runs if figure in values_of(result_of(run)))
        return label_of(figure, features_of(first), first.get("figures"))


def compared(folders: Sequence[str | Path], mixed: bool = False) -> Comparison:
    """Read and group run folders; CheckpointError for one that is none, or whose records are damaged.

    ConfigError for fewer than two, one given twice, two of one seed and the same settings, and, unless `mixed`, for
    figures of different protocols.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ConfigError("compare wants two run folders or more, each once; give RUN RUN ...")
    if len(paths) > MOST_RUNS:
        raise ConfigError(f"{len(paths)} runs do not fit on a page; compare {MOST_RUNS} at most")
    for path in paths:
        require_whole(path)
    runs = [read_run(path) for path in paths]
    protocol, odd = protocols(runs)
    if odd and not mixed:
        name, what = next(iter(odd.items()))
        raise ConfigError(
            f"'{name}' was measured otherwise than the first run ({what}), so their figures do not compare; evaluate "
            f"them alike, or say --mixed to have them marked"
        )
    groups = grouped(runs)
    for group in groups:
        _require_other_seeds(group)
    return Comparison(groups, protocol, odd)


def require_whole(folder: Path) -> None:
    """CheckpointError for a record that a report would leave out: here a figure too few is a wrong mean."""
    for name, reads in (("config.yaml", lambda text: parse(text, "config.yaml")), ("evaluation.json", parse_json)):
        file = folder / name
        try:
            whole = not file.exists() or isinstance(reads(file.read_text("utf-8")), dict)
        except (OSError, ValueError, ConfigError):
            whole = False
        if not whole:
            raise CheckpointError(f"'{file}' is damaged, so the run does not compare; leave it out, or run it again")
    log = folder / "metrics.jsonl"
    if log.exists():
        # The last line may have been cut by a kill; the others are written whole.
        lines = log.read_text("utf-8", errors="replace").split("\n")[:-1]
        number = next((number for number, line in enumerate(lines, 1) if not _is_entry(line)), None)
        if number is not None:
            raise CheckpointError(f"line {number} of '{log}' is damaged, so the run does not compare; leave it out")


def _is_entry(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _require_other_seeds(group: Group) -> None:
    first: dict[str, str] = {}
    for run, seed in zip(group.runs, group.seeds, strict=True):
        other = first.setdefault(seed, str(run.folder))
        if other != str(run.folder):
            raise ConfigError(
                f"'{other}' and '{run.folder}' have one seed and the same settings, which tells no spread; leave one "
                f"out"
            )


def result_of(run: RunData) -> dict[str, Any]:
    """The evaluation of what the run made, as `evaluation.json` has it; {} where there is none."""
    return next((run.evaluation[name] for name in MODELS if name in run.evaluation), {})


def protocols(runs: Sequence[RunData]) -> tuple[dict[str, str], dict[str, str]]:
    """The protocol of the first measured run, and what other runs have in its place, by their folder's name."""
    words = {run.folder.name: protocol_words(result_of(run).get("protocol") or {}) for run in runs}
    first = next((one for one in words.values() if one), {})
    odd = {
        name: "; ".join(f"{key}: {one.get(key, '-')}, not {first.get(key, '-')}" for key in different)
        for name, one in words.items()
        if one and (different := [key for key in dict.fromkeys([*first, *one]) if first.get(key) != one.get(key)])
    }
    return first, odd


def settings_of(run: RunData) -> dict[str, str]:
    """Every setting as a word, by dotted key; of a config that is damaged none."""
    try:
        return dict(_leaves(parse(run.config_text, "config.yaml")))
    except ConfigError:
        return {}


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items() if isinstance(section, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            word = flow(value)
            yield f"{prefix}{key}", word if len(word) <= LONGEST else f"{word[: LONGEST - 3]}..."


def grouped(runs: Sequence[RunData]) -> list[Group]:
    """Runs of equal settings together, in the order of the first of each."""
    known = [{key: word for key, word in settings_of(run).items() if key not in PASSED_OVER} for run in runs]
    keys = list(dict.fromkeys(key for settings in known for key in settings))
    differ = [key for key in keys if len({settings.get(key) for settings in known}) > 1]
    members: dict[str, list[RunData]] = {}
    chosen: dict[str, dict[str, str]] = {}
    for run, settings in zip(runs, known, strict=True):
        own = {key: settings.get(key, "-") for key in differ}
        # What differs in every run by its config alone, as of damaged ones, is its folder.
        mark = json.dumps(own) if settings else str(run.folder)
        members.setdefault(mark, []).append(run)
        chosen[mark] = own
    names = unlike([name_of([run.folder.name for run in some]) for some in members.values()])
    return [Group(name, members[mark], chosen[mark]) for name, mark in zip(names, members, strict=True)]


def name_of(folders: Sequence[str]) -> str:
    """What the names of folders have in common, without the beginning of the seed.

    >>> name_of(["sid_seed=0", "sid_seed=1"]), name_of(["dmd2"]), name_of(["a", "b"])
    ('sid', 'dmd2', 'a and 1 more')
    """
    if len(folders) == 1:
        return folders[0]
    length = next((i for i, letters in enumerate(zip(*folders, strict=False)) if len(set(letters)) > 1), None)
    common = re.sub(r"[-_,. ]*(seeds?)?[-_=,. ]*\d*$", "", folders[0][:length])
    return common or f"{folders[0]} and {len(folders) - 1} more"


def unlike(names: Sequence[str]) -> list[str]:
    """The names, numbered where two are the same."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[:index].count(name) + 1})"
        for index, name in enumerate(names)
    ]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What `compare.json` holds."""
    return {
        "protocol": comparison.protocol,
        "measured_otherwise": comparison.odd,
        "groups": [
            {
                "name": group.name,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": group.seeds,
                "settings": group.settings,
                "steps": [run.steps for run in group.runs],
                "seconds": vars(group.seconds),
                "figures": {name: vars(figure) for name, figure in group.figures.items()},
            }
            for group in comparison.groups
        ],
    }
