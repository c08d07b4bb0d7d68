"""The reference of a distance: statistics of all its images, features of a sample, kept on disk between runs."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from diffdistill import processes
from diffdistill.data import ImageSet
from diffdistill.data.rows import Images
from diffdistill.errors import ConfigError
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.moments import Gaussian, Moments
from diffdistill.files import cache_dir, replacing

FORMAT = "diffdistill-reference-1"
KEPT = ("mean", "covariance", "features", "index")
SAMPLE_ENTRIES = 2**26  # features kept of one set: 256 MB, 32,768 rows of Inception


def sample_rows(dim: int) -> int:
    """How many rows of features are kept of a set, so that memory does not grow with it."""
    return SAMPLE_ENTRIES // dim


@dataclass(frozen=True)
class Reference:
    """What metrics compare with.

    gaussian: of all `n` images. features `(M, d)`, index `(M,)`: a sample, and which images it holds (all where they
    fit); None for a statistics file. resize: what the extractor did to the images.
    """

    name: str
    fingerprint: str | None
    n: int | None
    gaussian: Gaussian
    resize: str | None
    features: Tensor | None = None
    index: Tensor | None = None
    images: ImageSet | None = None

    def sample(self) -> Tensor:
        """The features of the sample; ConfigError where a statistics file holds none."""
        if self.features is None:
            raise ConfigError(
                f"{self.name} holds statistics only, enough for fid and no other metric: give the images"
            )
        return self.features

    def pictures(self) -> ImageSet:
        """The images themselves; ConfigError where a statistics file holds none."""
        if self.images is None:
            raise ConfigError(
                f"{self.name} holds statistics only, enough for fid and no other metric: give the images"
            )
        return self.images


def compact(features: Tensor) -> Tensor:
    """float32 where that loses nothing, which halves the cache."""
    small = features.float()
    return small if torch.equal(small.double(), features) else features


def _batches(images: Images, size: int, progress: bool) -> Iterator[slice]:
    """The places of each batch; who looks at it reads it, as one of several processes."""
    hidden = {} if progress else {"disable": True}  # where it is shown, the environment may still hide it
    with tqdm(total=len(images), desc="reference features", unit="image", leave=False, **hidden) as bar:
        for start in range(0, len(images), size):
            part = slice(start, min(start + size, len(images)))
            yield part
            bar.update(part.stop - part.start)


def _compute(images: Images, extractor: FeatureExtractor, progress: bool) -> dict[str, Tensor]:
    rows = min(len(images), sample_rows(extractor.dim))
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(images), generator=generator)[:rows].sort().values
    chosen = torch.zeros(len(images), dtype=torch.bool)
    chosen[index] = True
    moments, kept, start = Moments(extractor.dim), [], 0
    batches = _batches(images, extractor.batch_size, progress)
    for found in processes.in_turn(lambda part: {"features": extractor(images[part])}, batches):
        features = found["features"]
        moments.update(features)
        kept.append(features[chosen[start : start + len(features)]])
        start += len(features)
    g = moments.gaussian()
    return {"mean": g.mean, "covariance": g.covariance, "features": compact(torch.cat(kept)), "index": index}


def cache_file(images: ImageSet, extractor: FeatureExtractor, resize: str) -> Path:
    """Where the features of these images by this extractor are kept."""
    key = [FORMAT, images.fingerprint, extractor.id, extractor.sha256, resize, extractor.device.type]
    digest = hashlib.sha256(json.dumps([*key, sample_rows(extractor.dim)]).encode()).hexdigest()
    return cache_dir() / "references" / f"{digest[:32]}.safetensors"


def _read(file: Path, n: int) -> dict[str, Tensor] | None:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in KEPT}
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError):
        return None  # absent or damaged: computed again
    whole = metadata.get("n") == str(n) and metadata.get("sha256") == _digest(tensors)
    return tensors if whole else None


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and numbers: safetensors carries no checksum."""
    digest = hashlib.sha256()
    for name in KEPT:
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _write(file: Path, tensors: dict[str, Tensor], n: int) -> str | None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            save_file(tensors, partial, {"n": str(n), "sha256": _digest(tensors)})
    except (OSError, SafetensorError) as error:
        return f"the reference features could not be kept in {file.parent} ({error}): set DIFFDISTILL_CACHE"
    return None


def load_reference(
    images: ImageSet, extractor: FeatureExtractor, *, progress: bool = False
) -> tuple[Reference, str | None]:
    """Statistics and features of a reference set, from the cache or computed and kept there; and a warning or None."""
    resize = extractor.resize_used(*images.images.shape[2:])
    n, file, warning = len(images), cache_file(images, extractor, resize), None
    tensors = _read(file, n)
    if processes.most(tensors is None) or tensors is None:  # of several processes all compute, or none
        tensors = _compute(images.images, extractor, progress)
        warning = _write(file, tensors, n) if processes.speaks() else None
    few = n <= extractor.dim and len(tensors["features"]) == n
    rows = tensors["features"].double() - tensors["mean"] if few else None
    gaussian = Gaussian(tensors["mean"], tensors["covariance"], n, rows)
    features, index = tensors["features"], tensors["index"]
    return Reference(images.name, images.fingerprint, n, gaussian, resize, features, index, images), warning
