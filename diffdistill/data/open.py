from pathlib import Path

from diffdistill.assets import is_builtin
from diffdistill.data.builtin import read_builtin
from diffdistill.data.idx import read_pair
from diffdistill.data.source import Source


def open_source(data: str, split: str) -> Source:
    if is_builtin(data):
        return read_builtin(data, split)
    if data.endswith(".parquet"):
        from diffdistill.data.parquet import read_parquet

        return read_parquet(Path(data), data, split)
    return read_pair(Path(data), data, split)
