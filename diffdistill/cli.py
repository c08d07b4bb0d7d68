"""The front door: `diffdistill VERB ...`.

Each verb is one entry of a table. Flags and settings are checked before anything heavy is imported, so `--help` and
every usage error come at once. An error is one line on stderr; the exit code is that of its class in `errors.py`.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from diffdistill import __version__, cli_flags, cli_sampling
from diffdistill.bench.flags import add_bench
from diffdistill.cli_flags import Parser
from diffdistill.errors import ConfigError, DiffDistillError, DiskError, Interrupted

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}

EPILOG = """
exit codes: 0 ok, 1 failed check or bug, 2 usage or config, 3 data, 4 checkpoint or model folder,
5 non-finite training, 6 disk, 75 preempted and saved, 130 interrupted
"""


@dataclass(frozen=True)
class Verb:
    """target: `module:function`, imported when the verb runs and called with the parsed flags.

    settings: `module:class` of `diffdistill.config`; then the target gets the checked settings instead.
    """

    summary: str
    target: str
    flags: Callable[[Parser], None]
    settings: str | None = None


VERBS = {
    "train": Verb("train a teacher on images", "diffdistill.training.run:train", cli_flags.add_config, "schema:Train"),
    "distill": Verb(
        "distil a teacher into a one- or few-step student",
        "diffdistill.training.run:distill",
        cli_flags.add_config,
        "schema:Distill",
    ),
    "align": Verb(
        "align a text-to-image pipeline with preferences",
        "diffdistill.training.alignment_run:align",
        cli_flags.add_config,
        "align:Align",
    ),
    "sample": Verb(
        "make images with a teacher or a student", "diffdistill.sampling.command:run", cli_sampling.add_sample
    ),
    "evaluate": Verb(
        "FID and others, with their protocol", "diffdistill.evaluation.command:run", cli_sampling.add_evaluate
    ),
    "calibrate": Verb(
        "measure exposure bias and fit corrections of samplers",
        "diffdistill.calibration.command:run",
        cli_sampling.add_calibrate,
    ),
    "convert": Verb(
        "foreign weights into a model folder, running nothing of them",
        "diffdistill.convert.command:run",
        cli_flags.add_convert,
    ),
    "verify": Verb(
        "check the mathematics against closed forms", "diffdistill.verification.command:run", cli_flags.add_verify
    ),
    "report": Verb("one HTML file about a run", "diffdistill.reporting.command:run", cli_flags.add_report),
    "checkpoint": Verb(
        "list, verify or prune a run's checkpoints", "diffdistill.training.store:command", cli_flags.add_checkpoint
    ),
    "config": Verb("show, explain or compare settings", "diffdistill.cli_config:run", cli_flags.add_config_tool),
    "bench": Verb("speed and memory beside the bare networks", "diffdistill.bench.command:run", add_bench),
    "doctor": Verb("find broken installs, say what mends them", "diffdistill.doctor:run", cli_flags.add_doctor),
}
PLANNED = {
    "export": "models for other programs",
    "push": "upload to the Hub",
}


def normalized(argv: Sequence[str]) -> list[str]:
    """`--num_images` and `--num-images` are the same flag."""
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            words[index] = name.replace("_", "-") + sign + value
    return words


def _front() -> Parser:
    verbs = "\n".join(f"  {name:<11} {verb.summary}" for name, verb in VERBS.items())
    parser = Parser(
        prog="diffdistill",
        usage="diffdistill VERB ... [--help] [--quiet] [--debug]",
        description=f"One-step generators from diffusion models.\n\nverbs:\n{verbs}",
        epilog=f"planned, not built yet: {', '.join(PLANNED)}\n{EPILOG}",
    )
    parser.add_argument("--version", action="version", version=f"diffdistill {__version__}")
    _add_global(parser)
    return parser


def _add_global(parser: Parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--quiet", action="store_true", help="no progress bars (as when stderr is a file)")


def _verb_parser(name: str) -> Parser:
    verb = VERBS[name]
    parser = Parser(prog=f"diffdistill {name}", description=f"{verb.summary[0].upper()}{verb.summary[1:]}.")
    verb.flags(parser)
    _add_global(parser)
    return parser


def _check_verb(name: str) -> None:
    if name in PLANNED:
        raise ConfigError(f"'{name}' ({PLANNED[name]}) is planned and not built yet; verbs: {', '.join(VERBS)}")
    if name not in VERBS:
        near = get_close_matches(name, VERBS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(VERBS)}"
        raise ConfigError(f"there is no verb '{name}'; {hint}")


def _not_of_torchvision(told: logging.LogRecord) -> bool:
    """diffusers imports image processors that no verb uses; without torchvision, which none needs, each warns."""
    return "torchvision" not in told.getMessage()


def _dispatch(argv: list[str]) -> int:
    position = next((index for index, word in enumerate(argv) if not word.startswith("-")), None)
    if position is None:
        _front().parse(argv)
        raise ConfigError(f"a verb is missing; choose one of {', '.join(VERBS)} (see 'diffdistill --help')")
    name = argv[position]
    _check_verb(name)
    args = _verb_parser(name).parse(argv[:position] + argv[position + 1 :])
    if args.quiet or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read by tqdm itself, so the bars of every library obey
    logging.getLogger("transformers.utils.import_utils").addFilter(_not_of_torchvision)
    verb = VERBS[name]
    what: Any = args
    if verb.settings:
        from diffdistill.config import load_config

        home, _, name = verb.settings.partition(":")
        what = load_config(getattr(import_module(f"diffdistill.config.{home}"), name), args.config, args.overrides)
    module, _, function = verb.target.partition(":")
    return getattr(import_module(module), function)(what) or 0


def explained(error: BaseException) -> DiffDistillError:
    """The user's error behind any exception: what happened, and what to do."""
    if isinstance(error, DiffDistillError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    text = str(error).strip().splitlines() or ["no message"]
    if isinstance(error, OSError):
        what = f"'{error.filename}': {error.strerror}" if error.filename else text[0]
        if error.errno in NO_ROOM:
            return DiskError(f"no room left on the disk ({what}); free space or choose another folder")
        if error.errno in NO_PERMISSION:
            return DiskError(f"no permission ({what}); choose another folder or change its rights")
    if "No space left on device" in str(error):  # safetensors reports it as an error of its own
        return DiskError(f"no room left on the disk ({text[0]}); free space or choose another folder")
    return DiffDistillError(f"unexpected {type(error).__name__}: {text[0]} (--debug shows the traceback)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    words = normalized(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in words:
            traceback.print_exc()
        known = explained(error)
        for line in str(known).splitlines():
            print(f"diffdistill: error: {line}", file=sys.stderr)
        return known.exit_code


if __name__ == "__main__":
    sys.exit(main())
