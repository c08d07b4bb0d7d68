"""`diffdistill convert`."""

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="EDM's .pkl, a .pt of torch.save, or .safetensors")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder; nothing is overwritten")
    parser.add_argument(
        "--config", metavar="FILE", help="JSON with EDM's network_kwargs, for tensors alone (default: SOURCE's .json)"
    )


VERB = Verb(
    "convert",
    "foreign weights into a model folder, running nothing of them",
    "diffdistill.parts.edm.command:run",
    add_flags,
    70,
)
