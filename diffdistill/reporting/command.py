"""`diffdistill report RUN [--out FILE]`."""

from argparse import Namespace

from diffdistill.reporting.report import write_report


def run(args: Namespace) -> int:
    """Write the report and say where it is."""
    print(write_report(args.run, args.out))
    return 0
