"""`diffdistill config`."""

import argparse

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument("action", choices=("list", "show", "keys", "schema", "diff"))
    parser.add_argument(
        "verb", metavar="VERB", nargs="?", help="whose settings: train, distill or align; list: all where left out"
    )
    parser.add_argument("configs", metavar="CONFIG", nargs="*", help="show: one; diff: two; keys, schema, list: none")
    parser.add_argument(
        "--set", metavar="key=value", dest="settings", action="append", default=[], help="overrides of show"
    )
    parser.checks.append(_only_show_sets)


def _only_show_sets(args: argparse.Namespace) -> str | None:
    if args.settings and args.action != "show":
        return f"--set goes with show, and {args.action} shows files as they are: leave it out"
    return None


VERB = Verb("config", "show, explain or compare settings", "diffdistill.cli.config_tool:run", add_flags, 110)
