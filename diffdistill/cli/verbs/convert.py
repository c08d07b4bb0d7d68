"""`diffdistill convert`."""

from diffdistill.cli.parser import Parser, Verb


def add_flags(parser: Parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="EDM's .pkl, a .pt of torch.save, or .safetensors; a text-to-image model in one file",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder; nothing is overwritten")
    parser.add_argument(
        "--config",
        metavar="FILE|PIPELINE",
        help="JSON with EDM's network_kwargs, for tensors alone (default: SOURCE's .json); of a text-to-image model "
        "in one file (.safetensors, .gguf) a pipeline folder or Hub id of its architecture",
    )


VERB = Verb(
    "convert",
    "foreign weights into a model folder, running nothing of them",
    "diffdistill.parts.edm.command:run",
    add_flags,
    70,
)
