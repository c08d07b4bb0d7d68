"""`diffdistill bench`."""

from argparse import Namespace

from diffdistill.cli.parser import Parser, Verb, add_device, whole

DEFAULT_MODEL = "builtin:fashion_mnist_teacher"


def add_flags(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the figures with their protocol")
    parser.add_argument("--quick", action="store_true", help="two methods, four images, two repeats")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        help="whose network (default: the bundled teacher)",
    )
    parser.add_argument("--batch-size", metavar="B", type=whole(1), help="images a step (default 8; 4 with --quick)")
    parser.add_argument(
        "--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="autocast of the passes (default no)"
    )
    add_device(parser)
    parser.add_argument(
        "--config", metavar="CONFIG", help="measure a step of this run, with its key=value, and no table"
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="settings laid over that of --config"
    )
    parser.names = {"model": "model"}
    parser.checks.append(_one_of_both)


def _one_of_both(args: Namespace) -> str | None:
    """A run has its model, batch and precision among its settings."""
    if args.config is None:
        first = args.overrides[0] if args.overrides else None
        return None if first is None else f"unexpected '{first}'; settings are those of a run: name it by --config"
    flags = {
        "--model": args.model != DEFAULT_MODEL,
        "--batch-size": args.batch_size is not None,
        "--mixed-precision": args.mixed_precision != "no",
    }
    if given := [flag for flag, is_given in flags.items() if is_given]:
        return f"{given[0]} does not go with --config, whose settings say it: write key=value, as in that run"
    return None


VERB = Verb(
    "bench", "speed and memory beside the bare networks", "diffdistill.parts.bench.command:run", add_flags, 120
)
