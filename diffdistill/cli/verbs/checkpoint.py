"""`diffdistill checkpoint`."""

from diffdistill.cli.parser import Parser, Verb, whole


def add_flags(parser: Parser) -> None:
    parser.add_argument("action", choices=("ls", "verify", "prune"))
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--keep", metavar="N", type=whole(1), default=1, help="prune: newest good ones to keep (default 1)"
    )


VERB = Verb(
    "checkpoint", "list, verify or prune a run's checkpoints", "diffdistill.training.store:command", add_flags, 100
)
