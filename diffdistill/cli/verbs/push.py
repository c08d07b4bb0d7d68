"""`diffdistill push`."""

import argparse
import re

from diffdistill.cli.parser import Parser, Verb
from diffdistill.files import HUB_ID

REPEATED = re.compile(r"--|\.\.")
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def add_flags(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, as runs/mine/student or what export wrote")
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", type=_repository, required=True, help="made where there is none"
    )
    parser.add_argument("--dry-run", action="store_true", help="show files and card, upload nothing, ask nobody")
    parser.add_argument("--private", action="store_true", help="where the repository is made: for its owner alone")
    parser.add_argument("--overwrite", action="store_true", help="replace what the repository holds, all of it")
    parser.add_argument(
        "--base-model", metavar="OWNER/NAME", type=_repository, help="the model that the card names as its base"
    )
    parser.add_argument(
        "--license", metavar="NAME", type=_licence, help="what the card says (default: that of the base, where known)"
    )
    parser.names = {"model": "model"}


def _repository(text: str) -> str:
    if HUB_ID.fullmatch(text) is None or REPEATED.search(text) or len(text) > 96 or text.endswith((".git", "-", ".")):
        raise argparse.ArgumentTypeError(f"'{text:.100}' is no repository of the Hub; write OWNER/NAME")
    return text


def _licence(text: str) -> str:
    if LICENCE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"'{text:.40}' is no name of a licence; write one of the Hub's, as mit, apache-2.0, openrail++, other"
        )
    return text


VERB = Verb("push", "upload a model to the Hub, with its card", "diffdistill.export.push:run", add_flags, 73)
