"""The numbers of a result: the label of each, its better direction, and a result as plain numbers. No torch.

A run's log, its report, its model card, the printed table and an early stop all read labels from here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffdistill.evaluation.metrics import Figure, Metric, metrics

PUBLISHED = "inception-2015-12-05"  # the id of the network of published FIDs, whichever file it came from

# Of rewards and judges, by the first part of their names; {} is the rest.
SCORES = (
    Figure("reward/", "Reward {}"),
    Figure("judge/", "Judge {}"),
    Figure("judge_at_start/", "Judge {}, of the start", lower_is_better=None),
    Figure("judge_win_rate/", "Win rate over the start, judge {}"),
)
# Of held-out pairs, which an aligning run measures.
PAIRS = (
    Figure("margin", "Margin"),
    Figure("win_rate", "Win rate"),
    Figure("win_rate_over_start", "Win rate over start"),
    Figure("win_rate_at_start", "Win rate at start", lower_is_better=None),
    Figure("loss_win", "Loss of the wanted image", lower_is_better=True),
    Figure("loss_lose", "Loss of the other image", lower_is_better=None),
)
WATCHED_PAIRS = ("margin", "win_rate", "win_rate_over_start", "loss_win")
"""Figures of pairs that say whether a run goes well."""


@dataclass(frozen=True)
class Value:
    """One number of one model; `real`: the same of real images, from so many (`real_n`) where that is known."""

    value: float
    n: int | None = None
    error: float | None = None
    real: float | None = None
    real_n: int | None = None


def known_figures() -> dict[str, Figure]:
    """The figures of every metric and of pairs, by name."""
    return {figure.name: figure for row in metrics().values() for figure in row.numbers} | {f.name: f for f in PAIRS}


def figure_of(name: str, words: Mapping[str, Any] | None = None) -> Figure:
    """The figure of a name. words: `figures` of a result, which describe metrics that are not installed here.

    An unknown name is its own label, and has no better direction.
    """
    if (known := known_figures().get(name)) is not None:
        return known
    if words and name in words:
        return Figure(name, words[name].get("label", name), words[name].get("lower_is_better"))
    for family in SCORES:
        if name.startswith(family.name):
            return Figure(name, family.label.format(name.removeprefix(family.name)), family.lower_is_better)
    return Figure(name, name.replace("_", " ").replace("/", " ").capitalize(), lower_is_better=None)


def label_of(name: str, features: str | None = None, words: Mapping[str, Any] | None = None) -> str:
    """The label; that of a figure such as `FID`, meant for the Inception of 2015, names other features."""
    figure = figure_of(name, words)
    return f"{figure.label} ({features})" if figure.of_features and features not in (None, PUBLISHED) else figure.label


def features_of(result: Mapping[str, Any]) -> str | None:
    """The id of the features that a result was measured by; None where it looked at none."""
    return ((result.get("protocol") or {}).get("features") or {}).get("id")


def values_of(result: Mapping[str, Any]) -> dict[str, Value]:
    """The numbers of a result by name, in its order; a metric of several figures gives several."""
    names = {*known_figures(), *(result.get("figures") or {})}
    values: dict[str, Value] = {}
    for name, entry in (result.get("metrics") or {}).items():
        floor, n = entry.get("floor") or {}, entry.get("n")
        real, real_n = floor.get("value", entry.get("of_the_reference")), floor.get("n")
        if "value" in entry:
            one = None if isinstance(real, dict) else real
            values[name] = Value(entry["value"], n, entry.get("standard_error"), one, real_n)
            continue
        for part in (key for key in entry if key in names):
            error = (entry.get("standard_errors") or {}).get(part)
            values[part] = Value(entry[part], n, error, real.get(part) if isinstance(real, dict) else None, real_n)
    return values


def described(rows: Iterable[Metric]) -> dict[str, Any]:
    """`figures` of a result: the label of each number of these metrics and its better direction.

    >>> from diffdistill.evaluation.metrics import metric
    >>> described([metric("fid")])
    {'fid': {'label': 'FID', 'lower_is_better': True}}
    """
    return {
        figure.name: {"label": figure.label, "lower_is_better": figure.lower_is_better}
        for row in rows
        for figure in row.numbers
    }


def numbers_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The same as plain numbers, as logs hold them."""
    return {name: value.value for name, value in values_of(result).items()}


def undefined(result: dict[str, Any]) -> list[str]:
    """A warning for each figure that is no number."""
    wrong = {name: known.value for name, known in values_of(result).items() if not math.isfinite(known.value)}
    return [
        f"{figure_of(name, result['figures']).label} is {value}, which says nothing: an image or a score is damaged"
        for name, value in wrong.items()
    ]
