"""`diffdistill bench`."""

from diffdistill.cli.parser import Parser, Verb, add_device, whole


def add_flags(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the figures with their protocol")
    parser.add_argument("--quick", action="store_true", help="two methods, four images, two repeats")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default="builtin:fashion_mnist_teacher",
        help="whose network (default: the bundled teacher)",
    )
    parser.add_argument("--batch-size", metavar="B", type=whole(1), help="images a step (default 8; 4 with --quick)")
    parser.add_argument(
        "--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="autocast of the passes (default no)"
    )
    add_device(parser)
    parser.names = {"model": "model"}


VERB = Verb(
    "bench", "speed and memory beside the bare networks", "diffdistill.parts.bench.command:run", add_flags, 120
)
