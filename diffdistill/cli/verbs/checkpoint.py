"""`diffdistill checkpoint`."""

import argparse

from diffdistill.cli.parser import Parser, Verb, whole


def add_flags(parser: Parser) -> None:
    parser.add_argument("action", choices=("ls", "verify", "prune"))
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--keep", metavar="N", type=whole(1), help="prune: newest good ones to keep (default 1)")
    parser.checks.append(_only_prune_keeps)


def _only_prune_keeps(args: argparse.Namespace) -> str | None:
    if args.keep is not None and args.action != "prune":
        return f"--keep goes with prune, and {args.action} removes nothing: leave it out"
    return None


VERB = Verb(
    "checkpoint", "list, verify or prune a run's checkpoints", "diffdistill.training.store:command", add_flags, 100
)
