"""`diffdistill data`."""

from diffdistill.cli.parser import Parser, Verb, whole
from diffdistill.data.formats import allowed

EXAMPLE = """
example:
  diffdistill data inspect my/pngs --image-size 32 --out look     # look/contact_sheet.png, look/index.html

exit code 0 where training would read the set, 3 where it would refuse it
"""


def add_flags(parser: Parser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("action", choices=("inspect",))
    parser.add_argument("data", metavar="DATA", help=allowed())
    parser.add_argument("--split", metavar="NAME", help="split to take (default: train)", default="train")
    parser.add_argument(
        "--image-size", metavar="N", type=whole(1), help="as data.image_size: bring pictures to N x N pixels"
    )
    parser.add_argument("--limit", metavar="N", type=whole(1), help="as data.limit: look at the first N images alone")
    parser.add_argument("--out", metavar="DIR", help="new folder for contact_sheet.png and index.html")
    parser.add_argument("--json", metavar="FILE", help="write all findings; - is standard output")
    parser.names = {"data": "data"}


VERB = Verb(
    "data", "look at a set: counts, faults, what training sees", "diffdistill.reporting.inspection:run", add_flags, 95
)
