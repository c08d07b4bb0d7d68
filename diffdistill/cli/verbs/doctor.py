"""`diffdistill doctor`."""

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the findings; - is standard output")


VERB = Verb("doctor", "find broken installs, say what mends them", "diffdistill.parts.doctor:run", add_flags, 130)
