"""`diffdistill verify`."""

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the table")


VERB = Verb(
    "verify", "check the mathematics against closed forms", "diffdistill.parts.verification.command:run", add_flags, 80
)
