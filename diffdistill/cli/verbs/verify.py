"""`diffdistill verify`."""

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the table")
    parser.add_argument("--thorough", action="store_true", help="more samples and more cases; minutes")


VERB = Verb(
    "verify", "check the mathematics against closed forms", "diffdistill.parts.verification.command:run", add_flags, 80
)
