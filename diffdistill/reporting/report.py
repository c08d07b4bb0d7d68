"""`report.html` of a run folder, and `diffdistill report RUN [--out FILE]`."""

from argparse import Namespace
from pathlib import Path

from diffdistill.errors import ConfigError
from diffdistill.files import not_written, write_text
from diffdistill.reporting.page import HEAD, page
from diffdistill.reporting.rundata import read_run


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run folder to `out` (`RUN/report.html`), replacing an earlier one; returns where it is.

    A file of `out` that is no report is left alone.

    One file that needs no network. Parts the run does not have are left out. Raises CheckpointError if `run` is no run
    folder, ConfigError if `out` is a folder or another file, DiskError if it cannot be written.
    """
    folder = Path(run)
    data = read_run(folder)
    own = folder / "report.html"
    file = own if out is None else Path(out)
    if file.is_dir():
        raise ConfigError(f"'{file}' is a folder; name a file such as {file / 'report.html'}")
    try:
        if file.absolute() != own.absolute() and not may_replace(file):
            raise ConfigError(f"'{file}' exists and is no report: delete it or name another file")
        write_text(file, page(data))
    except OSError as error:
        raise not_written(file, error, "free space or choose another place") from error
    return file


def may_replace(file: Path) -> bool:
    """Whether nothing is lost: no file, an empty one, a device, or a report."""
    if not file.is_file() or file.stat().st_size == 0:
        return True
    with file.open("rb") as stream:
        return stream.read(len(HEAD)) == HEAD.encode()


def run(args: Namespace) -> int:
    """Write the report and say where it is."""
    print(write_report(args.run, args.out))
    return 0
