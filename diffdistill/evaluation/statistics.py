"""Statistics files: `.npz` with `mu` and `sigma`, which EDM's and clean-fid's tools read and write too.

Ours say more: `n`, and which extractor and resize made them, so that a comparison of different features is refused.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffdistill.data.formats.arrays import Npz
from diffdistill.errors import DataError
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.frechet import as_gaussian
from diffdistill.evaluation.moments import Gaussian
from diffdistill.files import BROKEN_ZIP, replacing

SEAL = "sha256"  # of all else in a file of ours


@dataclass(frozen=True)
class Statistics:
    """A Gaussian and where it came from; None where a foreign file does not say."""

    gaussian: Gaussian
    extractor_id: str | None = None
    extractor_sha256: str | None = None
    resize: str | None = None
    source: str = ""


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write the file at once or not at all; `numpy.load(path)["mu"]` and `["sigma"]` are float64."""
    path = Path(path)
    g = statistics.gaussian
    words = {
        "extractor_id": statistics.extractor_id,
        "extractor_sha256": statistics.extractor_sha256,
        "resize": statistics.resize,
    }
    arrays: dict[str, Any] = {
        "mu": g.mean.numpy(),
        "sigma": g.covariance.numpy(),
        "n": np.int64(-1 if g.n is None else g.n),
    }
    arrays |= {key: np.asarray(value) for key, value in words.items() if value is not None}
    # The seal first: of a directory that is cut short, the end is lost.
    with replacing(path) as partial, partial.open("wb") as stream:
        sealed: dict[str, Any] = {SEAL: np.asarray(_digest(arrays)), **arrays}
        np.savez(stream, **sealed)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        whole.update(f"{key} {array.dtype} {array.shape}\0".encode() + array.tobytes())
    return whole.hexdigest()


def load_statistics(path: str | Path) -> Statistics:
    """Read a statistics file of ours, of EDM or of clean-fid; DataError for anything else, a pickle included."""
    try:
        # Never a pickle: object arrays are refused, and so are files that are not npz.
        file = Npz(Path(path), str(path))
        arrays = {key: file[key] for key in file}  # all: a name that does not fit its array is damage
    except (OSError, DataError) as error:
        raise DataError(
            f"{path} is no statistics file: give an .npz with 'mu' and 'sigma' and without pickles"
        ) from error
    if not {"mu", "sigma"} <= arrays.keys():
        raise DataError(f"{path} holds {', '.join(sorted(file)[:8]) or 'nothing'}: statistics need 'mu' and 'sigma'")
    if SEAL in arrays and str(arrays.pop(SEAL)) != _digest(arrays):
        raise DataError(f"{path} is damaged: its SHA-256 is not the one in it; make it again")
    try:
        n = int(arrays["n"]) if "n" in arrays else -1
        gaussian = as_gaussian(arrays["mu"], arrays["sigma"], n if n > 0 else None)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} holds statistics that are not numbers") from error
    words = {key: str(arrays[key]) for key in ("extractor_id", "extractor_sha256", "resize") if key in arrays}
    return Statistics(gaussian, **words, source=str(path))


def check_same_features(statistics: Statistics, extractor: FeatureExtractor) -> None:
    """Raise DataError where a file was made with another extractor, by its digest or its number of features."""
    dim = len(statistics.gaussian.mean)
    if dim != extractor.dim:
        raise DataError(
            f"{statistics.source} has {dim} features, '{extractor.id}' has {extractor.dim}: use its extractor"
        )
    if statistics.extractor_sha256 not in (None, extractor.sha256):
        raise DataError(
            f"{statistics.source} was made by '{statistics.extractor_id}' ({str(statistics.extractor_sha256)[:12]}), "
            f"not by '{extractor.id}' ({extractor.sha256[:12]}): the numbers would not compare"
        )


def is_statistics(path: str | Path) -> bool:
    """Whether a file is an .npz with `mu` and `sigma`, and not one of images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, *BROKEN_ZIP):
        return False
