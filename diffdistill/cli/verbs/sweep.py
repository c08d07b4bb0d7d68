"""`diffdistill sweep`."""

from diffdistill.cli.parser import Parser, Verb

EXAMPLE = """
examples:
  diffdistill sweep fashion_mnist/dmd2 method.name=sid,sim seeds=0,1,2 max_train_steps=500 --out runs/sweep
  diffdistill sweep fashion_mnist/dmd2 critic.updates_per_step=1,2,5 --out runs/sweep --dry-run

every combination is a run in a folder of --out; a list within brackets is one value. Given again, the same command
skips runs that are finished and resumes the others.

exit codes: 0 all are finished; that of the runs that failed, 1 where these differ; 75 and 130 as of one run
"""


def add_flags(parser: Parser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("recipe", metavar="CONFIG", help="a YAML file, or a shipped config such as fashion_mnist/dmd2")
    parser.add_argument(
        "overrides",
        metavar="key=a,b,c",
        nargs="*",
        default=[],
        help="values to run in turn; of one value, a setting",
    )
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="folder of the runs, their states and their comparison"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what would be done with each")


VERB = Verb(
    "sweep", "runs over values of settings, in turn; resumable; compared", "diffdistill.cli.sweep:run", add_flags, 88
)
