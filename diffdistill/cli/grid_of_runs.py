"""What a sweep runs: the combinations of values, a name for each, and the settings that it will have."""

import hashlib
import itertools
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from diffdistill.cli.front import checked_settings, settings_of, verbs, whose
from diffdistill.errors import ConfigError

OWN = ("output_dir", "resume_from_checkpoint")  # the sweep's to say
MOST, LONGEST = 500, 120


@dataclass(frozen=True)
class Planned:
    """One run. overrides: those of all runs, and its own. sha256: of its settings, but for where it lies."""

    name: str
    overrides: tuple[str, ...]
    sha256: str


def planned(args: Namespace) -> tuple[str, list[Planned]]:
    """The verb and the runs, in the order in which the values are given; the last key changes fastest.

    All are checked before the first is begun: ConfigError, or another error of `settings_of`, that names the run.
    """
    fixed, axes = axes_of(args.overrides)
    verb = verbs()[whose(args.recipe) or "distill"]
    combinations = list(itertools.product(*axes.values()))
    if len(combinations) > MOST:
        raise ConfigError(f"sweep: these are {len(combinations)} runs, and {MOST} is the most; give fewer values")
    names, runs = called(list(axes), combinations), []
    for name, values in zip(names, combinations, strict=True):
        overrides = (*fixed, *(f"{key}={value}" for key, value in zip(axes, values, strict=True)))
        settings_of(verb, args.recipe, [*overrides, f"output_dir={args.out}/{name}"])
        runs.append(Planned(name, overrides, checked_settings(verb, args.recipe, overrides).sha256))
    return verb.name, runs


def axes_of(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Settings of one value, as they are given, and keys of several with their values."""
    fixed, axes = list[str](), dict[str, list[str]]()
    for word in words:
        key, sign, text = word.partition("=")
        key = "seed" if key == "seeds" else key.strip().replace("-", "_")
        values = split(text)
        if not sign or not key or "" in values:
            raise ConfigError(f"sweep: '{word}' is no setting with values; write key=a,b,c")
        if len(set(values)) < len(values):
            again = next(value for value in values if values.count(value) > 1)
            raise ConfigError(f"sweep: '{word}' has {again} twice, which would be one run; give each value once")
        if key in OWN:
            raise ConfigError(f"sweep: {key} is the sweep's own to say; leave it out, and name the folder by --out")
        if key in axes or any(other.startswith(f"{key}=") for other in fixed):
            raise ConfigError(f"sweep: '{key}' is given twice; give all its values at once")
        if len(values) > 1:
            axes[key] = values
        else:
            fixed.append(f"{key}={text}")
    if not axes:
        raise ConfigError("sweep: no setting has several values; write key=a,b,c, such as seeds=0,1,2")
    return fixed, axes


def split(text: str) -> list[str]:
    """Words between commas that stand outside of brackets and quotes.

    >>> split("0,1"), split("[0.9, 0.99],null"), split("'a, b'")
    (['0', '1'], ['[0.9, 0.99]', 'null'], ["'a, b'"])
    """
    words, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]


def called(keys: Sequence[str], combinations: Sequence[Sequence[str]]) -> list[str]:
    """Names of folders, `updates_per_step=2,seed=0`: short where no two are alike by it.

    >>> called(["method.name", "seed"], [("sid", "0"), ("sid", "1")])
    ['method=sid,seed=0', 'method=sid,seed=1']
    """
    short = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    labels = short if len(set(short)) == len(short) else list(keys)
    names = []
    for values in combinations:
        whole = ",".join(f"{label}={value}" for label, value in zip(labels, values, strict=True))
        name = re.sub(r"[^\w.,+=-]+", "-", whole)
        if name != whole or len(name) > LONGEST:  # something was lost that may have told it from another
            name = f"{name[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
        names.append(name)
    return names
