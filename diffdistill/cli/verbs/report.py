"""`diffdistill report`."""

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", metavar="FILE", help="where to write (default: RUN/report.html)")


VERB = Verb("report", "one HTML file about a run", "diffdistill.reporting.report:run", add_flags, 90)
