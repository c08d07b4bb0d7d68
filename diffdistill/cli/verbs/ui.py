"""`diffdistill ui`."""

from diffdistill.cli.parser import Parser, Verb, add_device, whole


def add_flags(parser: Parser) -> None:
    parser.add_argument("place", metavar="RUN|MODEL", help="folder of a run, at work or finished, or a model")
    parser.add_argument(
        "--port", metavar="N", type=whole(1, 65535), help="of this machine, 1 to 65535 (default: a free one)"
    )
    add_device(parser)
    parser.names = {"place": "run_or_model"}


VERB = Verb("ui", "look at a run and draw from a model, in a browser here", "diffdistill.cli.ui:run", add_flags, 97)
