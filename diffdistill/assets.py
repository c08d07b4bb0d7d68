"""Where what comes with the package lies, in a clone and in an installed wheel: data, models, examples."""

from functools import cache
from pathlib import Path, PurePosixPath

from diffdistill.errors import CheckpointError, DataError
from diffdistill.files import read_text, sha256

BUILTIN = "builtin:"
SUMS = "SHA256SUMS"
# A wheel carries assets/ inside the package, a clone keeps it beside. Inside first: beside may lie anyone's folder.
PACKAGE = Path(__file__).resolve().parent
ROOTS = (PACKAGE / "assets", PACKAGE.parent / "assets")


def asset(name: str) -> Path:
    """Path of the bundled file or folder `name`, such as `fashion_mnist` or `fashion_mnist/manifest.json`.

    Raises DataError when there is none of that name, with the names there are.
    """
    parts = PurePosixPath(name).parts
    if parts and not name.startswith("/") and ".." not in parts:
        for root in ROOTS:
            if (root / name).exists():
                return root / name
    known = ", ".join(path.name for path in bundled()) or "(no assets installed)"
    raise DataError(f"nothing named {name!r} is bundled: choose one of {known}")


def example(place: str) -> Path | None:
    """The file of the package's own examples that `examples/...` names, or None."""
    home = PACKAGE if (PACKAGE / "examples").is_dir() else PACKAGE.parent
    file = (home / place).resolve()
    inside = file.is_relative_to(home / "examples") and (home / "assets").is_dir()
    return file if inside and not Path(place).is_absolute() and file.is_file() else None


def bundled() -> list[Path]:
    """The folders of all bundled data sets and models, sorted."""
    return sorted(path for root in ROOTS if root.is_dir() for path in root.iterdir() if path.is_dir())


def is_builtin(reference: str) -> bool:
    """Whether a DATA or MODEL argument has the form `builtin:NAME`."""
    return reference.startswith(BUILTIN)


def resolve_builtin(reference: str) -> Path:
    """Folder that `builtin:NAME` stands for, be it a data set or a model; raises what `checked_asset` does."""
    return checked_asset(reference.removeprefix(BUILTIN))


def checked_asset(name: str) -> Path:
    """As `asset`, for what is read: every file of the folder is the one that was shipped; looked at once a process.

    Raises DataError as `asset` does and for a damaged data set, CheckpointError for a damaged model.
    """
    return _checked(asset(name))


@cache
def _checked(folder: Path) -> Path:
    sums = folder.parent / SUMS
    if not sums.is_file():
        return folder  # a folder that was put beside the package by hand
    for line in read_text(sums).splitlines():
        digest, _, place = line.partition("  ")
        file = folder.parent / place
        if not place.startswith(f"{folder.name}/") or (file.is_file() and sha256(file) == digest):
            continue
        kind = DataError if (folder / "manifest.json").exists() else CheckpointError
        raise kind(f"the bundled {file} is missing or damaged (see {SUMS} beside it): install the package again")
    return folder
