"""`diffdistill export`."""

import argparse

from diffdistill.cli.parser import Parser, Verb
from diffdistill.export.formats import DTYPES, FORMATS, Wish, complaint

EXAMPLE = "\n".join(["formats:", *(f"  {name:<12} {what}" for name, what in FORMATS.items())])


def add_flags(parser: Parser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id in diffusers format, or builtin:NAME")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="what is written; see below")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="a new folder, or a new file .safetensors; nothing is overwritten"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the weights (default: as they are)")
    parser.add_argument(
        "--rank",
        metavar="N",
        help="of a LoRA: kept (the run's own adapter, the default), full (all of the difference from the base) or N "
        "(the closest of that rank)",
    )
    parser.add_argument("--base", metavar="MODEL", help="of a LoRA: the model it is laid over (default: the teacher)")
    parser.checks.append(_unfitting)
    parser.names = {"model": "model", "base": "model"}


def _unfitting(args: argparse.Namespace) -> str | None:
    return complaint(Wish(args.format, args.dtype, args.rank, args.base))


VERB = Verb("export", "write a model as other programs load it", "diffdistill.export.command:run", add_flags, 72)
