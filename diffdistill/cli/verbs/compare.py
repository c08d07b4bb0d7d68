"""`diffdistill compare`."""

from diffdistill.cli.parser import Parser, Verb

EXAMPLE = """
example:
  diffdistill compare runs/sid runs/dmd2_a runs/dmd2_b --out compared     # compared/index.html, compared/compare.json

runs that differ by their seed alone are one line, with the spread
"""


def add_flags(parser: Parser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument("--out", metavar="DIR", help="folder for index.html and compare.json")
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON; - is standard output")
    parser.add_argument(
        "--mixed", action="store_true", help="runs measured by different protocols: mark them, do not refuse"
    )


VERB = Verb(
    "compare", "several runs beside each other: figures, settings, curves", "diffdistill.reporting.compare_page:run",
    add_flags, 92,
)  # fmt: skip
