"""Which reader reads which DATA. The formats that need more than numpy and Pillow are imported when met."""

import re
from pathlib import Path

from diffdistill.assets import is_builtin
from diffdistill.data.archive import read_zip
from diffdistill.data.arrays import read_npy, read_npz
from diffdistill.data.builtin import read_builtin
from diffdistill.data.folder import read_folder
from diffdistill.data.idx import is_idx, read_pair
from diffdistill.data.source import SUFFIXES, Source
from diffdistill.errors import DataError
from diffdistill.files import PICKLES

READERS = {".zip": read_zip, ".npz": read_npz, ".npy": read_npy}
ALLOWED = "a folder of images, a parquet, zip, npz or IDX file, builtin:NAME, or a Hub id OWNER/NAME"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def open_source(data: str, split: str) -> Source:
    """Finds the reader of DATA by what is there: its form, its suffix, its first bytes. DataError if none fits."""
    if is_builtin(data):
        return read_builtin(data, split)
    path = Path(data).expanduser()
    if not data.strip() or not path.exists():
        # Where the folder is here, the rest is mistyped; asking the Hub would take half a minute without a network.
        if HUB_ID.fullmatch(data) and not path.parent.exists():
            from diffdistill.data.hub import read_hub

            return read_hub(data, split)
        raise DataError(f"there is no file or folder {data!r}: give {ALLOWED}")
    if path.is_dir():
        return read_folder(path, data, split)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from diffdistill.data.parquet import read_parquet

        return read_parquet(path, data, split)
    if suffix in READERS:
        return READERS[suffix](path, data, split)
    if is_idx(path):
        return read_pair(path, data, split)
    if suffix in PICKLES:
        raise DataError(f"{data} may be a pickle, which runs code when it is opened, so it is not: give {ALLOWED}")
    if suffix in SUFFIXES:
        raise DataError(f"{data} is a single image: give the folder it lies in")
    raise DataError(f"{data} is in no format that is known: give {ALLOWED}")
