"""The parser, a verb of it, and what flags read. No torch: `--help` must come at once."""

import argparse
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from diffdistill.errors import ConfigError
from diffdistill.files import expanded
from diffdistill.parts.attention.names import attention_name
from diffdistill.precision import PRECISIONS
from diffdistill.registry import is_plugin
from diffdistill.sampling.sampler import SAMPLERS

DEVICES = "auto, cpu, cuda, cuda:N, xpu, xpu:N or mps"
PLACES = {"CONFIG", "DATA", "DIR", "FILE", "MODEL", "PATH", "RUN", "SOURCE"}
"""Words of the help for what is, or may be, a path."""


@dataclass(frozen=True)
class Verb:
    """A verb of the command line, declared as `VERB` in its own file, beside its flags.

    target: `module:function`, imported when the verb runs and called with the parsed flags. settings: `module:class`
    of its config; then the target gets the checked settings instead. order: its place in the help. shared: whether
    several processes share its work; of those of another verb one does it, and the others end at once.
    """

    name: str
    summary: str
    target: str
    flags: "Callable[[Parser], None]"
    order: int
    settings: str | None = None
    shared: bool = False


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ConfigErrors of one sentence."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.checks: list[Callable[[argparse.Namespace], str | None]] = []  # what is wrong with flags together
        self.names: dict[str, str] = {}  # flags whose values a function of `early.py` looks at, once all are read

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if message.startswith("the following arguments are required: "):
            message = f"{message.partition(': ')[2]} is missing"
        raise ConfigError(f"{self.prog.removeprefix('diffdistill ')}: {message} (see '{self.prog} --help')")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse all of `argv`; overrides may stand between flags, and `~` is a home folder wherever a path is."""
        args, rest = self.parse_known_args(argv)
        for action in self._actions:
            if PLACES & {*str(action.metavar).split("|")}:
                setattr(args, action.dest, _at_home(getattr(args, action.dest)))
            if action.metavar in ("DIR", "FILE") and action.dest != "json" and getattr(args, action.dest) == "-":
                self.error(f"{'/'.join(action.option_strings)} - is neither read nor written here: name it, or ./-")
        for word in rest:
            if word.startswith("-") or not hasattr(args, "overrides"):
                self._unknown(word, args)
        if rest:
            args.overrides = [*args.overrides, *rest]
        for check in self.checks:
            if (complaint := check(args)) is not None:
                self.error(complaint)
        return args

    def _unknown(self, word: str, args: argparse.Namespace) -> NoReturn:
        name = word.partition("=")[0]
        if not word.startswith("-"):
            self.error(f"unexpected '{word}'")
        near = get_close_matches(name, [flag for action in self._actions for flag in action.option_strings], 1)
        if near:
            self.error(f"unknown flag '{name}', did you mean '{near[0]}'?")
        if hasattr(args, "overrides"):
            key = name.lstrip("-").replace("-", "_")
            self.error(f"unknown flag '{name}'; a setting is written without dashes: {key}=VALUE")
        self.error(f"unknown flag '{name}'")


def _at_home(given: Any) -> Any:
    """A path, or several, with `~` as the shell has it, which leaves `--out=~/x` and what is in quotes as it is."""
    if isinstance(given, list | tuple):
        return type(given)(_at_home(each) for each in given)
    return str(expanded(given)) if isinstance(given, str) and given.startswith("~") else given


def seed(text: str) -> int:
    from diffdistill.data.prompts import MOST_SEED

    value = whole(0)(text)
    if value > MOST_SEED:
        raise argparse.ArgumentTypeError(f"'{text}' is above {MOST_SEED}, the highest there is")
    return value


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Reads a whole number in a range, which the complaint names."""
    allowed = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def read(text: str) -> int:
        good = re.fullmatch(r"\d{1,18}", text, re.ASCII) and int(text) >= minimum
        if not good or (maximum is not None and int(text) > maximum):
            raise argparse.ArgumentTypeError(f"'{text:.40}' is no whole number {allowed}")
        return int(text)

    return read


def number(minimum: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= minimum):
            raise argparse.ArgumentTypeError(f"'{text}' is no number >= {minimum:g}")
        return value

    return read


def labels(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of class labels such as 0,1,2")
    return tuple(int(word) for word in text.split(","))


def auto_or_numbers(form: str, least: int, most: int) -> Callable[[str], str]:
    """Text that is `auto` or so many finite numbers; handed on as it was written."""

    def read(text: str) -> str:
        words = text.split(",")
        try:
            good = least <= len(words) <= most and all(math.isfinite(float(word)) for word in words)
        except ValueError:
            good = False
        if text != "auto" and not good:
            raise argparse.ArgumentTypeError(f"'{text}' is not of the form auto or {form}")
        return text

    return read


def sampler(text: str) -> str:
    """The name of a sampler; one of a file is looked up later, when the user's consent to run it is known."""
    if is_plugin(text):
        return text
    name, names = text.replace("-", "_"), SAMPLERS.names()
    if name not in names:
        raise argparse.ArgumentTypeError(f"'{text}' is no sampler; choose of {', '.join(names)}, or give FILE.py:NAME")
    return name


def known(kind: str, names: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """One of a registry's names, or `FILE.py:NAME`, which is not looked into before the command runs."""

    def read(text: str) -> str:
        if text not in (rows := tuple(names())) and not is_plugin(text):
            raise argparse.ArgumentTypeError(f"'{text}' is no {kind}; choose of {','.join(rows)}, or FILE.py:NAME")
        return text

    return read


def several(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A comma-separated list of what `read` reads, each once."""
    return lambda text: tuple(dict.fromkeys(read(word) for word in text.split(",")))


def attention(text: str) -> str:
    try:
        return attention_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def precision(text: str) -> str:
    if text not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"'{text}' is no precision; give {', '.join(PRECISIONS)}")
    return text


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}' is no device; give {DEVICES}")
    return text


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", type=device, help=f"{DEVICES} (default: auto, the GPU if there is one, else cpu)")


def add_config(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a shipped config such as fashion_mnist/dmd2")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings laid over the file, e.g. student.steps=2",
    )


def prompt(text: str) -> str:
    """A text that is not empty, of whole characters (bytes that are no UTF-8 reach a program as halves of some)."""
    from diffdistill.data.prompts import problem_of

    if problem_of(text) is not None:
        raise argparse.ArgumentTypeError(f"{text!a} is no prompt; write a text")
    return text.strip()
