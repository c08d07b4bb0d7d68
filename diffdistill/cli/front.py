"""The front door: `diffdistill VERB ...`.

Each verb is a file of `verbs/`. Flags and settings are checked before anything heavy is imported, so `--help` and
every usage error come at once. An error is one line on stderr; the exit code is that of its class in `errors.py`.
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, cast

from diffdistill import __version__, processes
from diffdistill.cli.parent import end_with_parent
from diffdistill.cli.parser import Parser, Verb
from diffdistill.cli.streams import Steady, steady
from diffdistill.errors import ConfigError, DiffDistillError, Problems
from diffdistill.explain import explained
from diffdistill.imports import put_off
from diffdistill.machine import stop_signals
from diffdistill.registry import Registry, allow_code, check_consent, is_plugin, named

EPILOG = """
exit codes: 0 ok, 1 failed check or bug, 2 usage or config, 3 data, 4 checkpoint or model folder,
5 non-finite training, 6 disk, 75 preempted and saved, 130 interrupted
"""


VERBS: Registry[Verb] = Registry("verb", Verb, "diffdistill.cli.verbs", "VERB")


def verbs() -> dict[str, Verb]:
    """Every verb, in the order of the help."""
    return dict(sorted(VERBS.rows().items(), key=lambda item: item[1].order))


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
    lines = "\n".join(f"  {name:<11} {verb.summary}" for name, verb in verbs().items())
    parser = Parser(
        prog="diffdistill",
        usage="diffdistill VERB ... [--help] [--quiet] [--debug]",
        description=f"One-step generators from diffusion models.\n\nverbs:\n{lines}",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"diffdistill {__version__}")
    _add_global(parser)
    return parser


def _add_global(parser: Parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bars, nor the lines in their place where stderr is a file"
    )
    parser.add_argument(
        "--allow-code", action="store_true", help="run the files that FILE.py:NAME names in flags or config"
    )


def parser_of(verb: Verb) -> Parser:
    parser = Parser(prog=f"diffdistill {verb.name}", description=f"{verb.summary[0].upper()}{verb.summary[1:]}.")
    verb.flags(parser)
    _add_global(parser)
    return parser


def _verb(name: str) -> Verb:
    if (verb := VERBS.find(name)) is not None:
        return verb
    known = verbs()
    near = get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
    raise ConfigError(f"there is no verb '{name}'; {hint}")


def _not_of_torchvision(record: logging.LogRecord) -> bool:
    """diffusers imports image processors that no verb uses; without torchvision, which none needs, each warns."""
    return "torchvision" not in record.getMessage()


def _dispatch(argv: list[str]) -> int:
    try:
        verb, given = _asked(argv)
    except DiffDistillError as error:
        error.told = not processes.speaks()  # all processes of a machine read the same words
        raise
    if given is None:
        return 0
    return named(verb.target)(given) or 0


def _asked(argv: list[str]) -> tuple[Verb, Any]:
    """The verb and what it is given, checked; None where this process has no part in it."""
    position = next((index for index, word in enumerate(argv) if not word.startswith("-")), None)
    if position is None:
        _front().parse(argv)
        raise ConfigError(f"a verb is missing; choose one of {', '.join(verbs())} (see 'diffdistill --help')")
    verb = _verb(argv[position])
    parser = parser_of(verb)
    args = parser.parse(argv[:position] + argv[position + 1 :])
    if not verb.shared and processes.launched()[0] > 0:
        return verb, None
    allow_code(args.allow_code)
    if args.quiet or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read by tqdm itself, so the bars of every library obey
    if args.quiet:
        os.environ.setdefault("DIFFDISTILL_QUIET", "1")  # no lines of progress in their place either
    logging.getLogger("transformers.utils.import_utils").addFilter(_not_of_torchvision)
    for name in _names_in(vars(args).values()):
        check_consent(name)
    if parser.names:
        from diffdistill.cli import early

        early.look_at(args, parser.names)
    if not verb.shared and (count := processes.launched()[1]) > 1:
        print(f"note: {verb.name} is the work of one process; the other {count - 1} have ended", file=sys.stderr)
    given: Any = args
    if verb.settings:
        given = settings_of(verb, args.config, args.overrides)
    elif hasattr(args, "overrides") and getattr(args, "config", None) is not None:  # the run of another verb
        owner = whose(args.config) or "distill"
        args.resolved = settings_of(verbs()[owner], args.config, args.overrides)
    return verb, given


def settings_of(verb: Verb, config: str, overrides: Sequence[str]) -> Any:
    """The settings of a run, what they name looked at; ConfigError for a part of others, or of another verb's."""
    from diffdistill.cli import early
    from diffdistill.config import find_config

    resolved = checked_settings(verb, config, overrides)
    if Path(config).stem.startswith("_base") and find_config(config)[1].startswith("configs/"):
        raise ConfigError(f"'{config}' is a part of other configs and no recipe; choose one of those beside it")
    early.settings(resolved)
    return resolved


def checked_settings(verb: Verb, config: str, overrides: Sequence[str] = ()) -> Any:
    """The settings of a config; of one that is another verb's, a ConfigError of one sentence says so."""
    from diffdistill.config import load_config

    try:
        return load_config(named(verb.settings or ""), config, overrides)
    except ConfigError as error:
        if not isinstance(error, Problems) or "\n" not in str(error):
            raise
        if (other := whose(config, verb.settings)) is not None:
            raise ConfigError(f"'{config}' is a config of {other}, not of {verb.name}; say {other}") from None
        raise


def whose(config: str, but: str | None = None) -> str | None:
    """The verb whose settings a config holds, of others than those of the settings `but`."""
    from diffdistill.config import load_config

    for verb in verbs().values():
        if verb.settings not in (None, but):
            with contextlib.suppress(ConfigError):
                load_config(named(verb.settings), config)
                return verb.name
    return None


def _names_in(values: Iterable[object]) -> Iterator[str]:
    """`FILE.py:NAME` in flags: refused without consent before anything heavy is imported."""
    for value in values:
        yield from (word for word in (value if isinstance(value, tuple) else (value,)) if _is_code(word))


def _is_code(word: object) -> bool:
    return isinstance(word, str) and is_plugin(word)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    words = normalized(sys.argv[1:] if argv is None else argv)
    with steady(), asked_to_end():
        try:
            end_with_parent()
            code = _dispatch(words)
            sys.stdout.flush()
            return code
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in words:
                traceback.print_exc()
            return _told(error)


def _told(error: BaseException) -> int:
    """Say on stderr what went wrong; the exit code. What could be printed is, an unwritable stdout is left behind."""
    known = explained(error)
    try:
        sys.stdout.flush()
    except OSError:
        cast(Steady, sys.stdout).silence()
    text, number = str(known), processes.launched()[0]
    who = f"process {number}: " if number else ""
    for line in text.splitlines() if isinstance(known, Problems) else [escaped(text)]:
        if not known.told:
            print(f"diffdistill: error: {who}{line}", file=sys.stderr)
    return known.exit_code


def escaped(text: str) -> str:
    """A sentence on one line, though it names a file whose name has several."""
    return "".join(ascii(part)[1:-1] if not part.isprintable() and part != "\t" else part for part in text)


@contextlib.contextmanager
def asked_to_end() -> Iterator[None]:
    """Within, a signal to end (SIGTERM, a terminal that closes) unwinds as Ctrl-C does, so that nothing half-made is
    left; verbs that train take the signals over, and save first. Both wait for the end of an import.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if not put_off(number, frame):
            raise KeyboardInterrupt("" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}")

    before: dict[signal.Signals, object] = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's
        for number in (*stop_signals(), signal.SIGINT):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup, a caller's own stay
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
