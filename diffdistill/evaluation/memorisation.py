"""Does the generator copy its training images? Nearest neighbours, and a picture to judge by."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffdistill.data.rows import Images
from diffdistill.evaluation.arrays import Array, as_pair
from diffdistill.evaluation.precision_recall import squared_distances
from diffdistill.files import replacing

SIDE = 64  # pixels of a thumbnail


@dataclass(frozen=True)
class Neighbours:
    """Of each generated image: `index (N, k)` of its nearest training images, nearest first, and `distance (N, k)`.

    `authentic`: share of generated images that are further from their nearest training image than that image is from
    *its* nearest training image (2102.08921, authenticity): about one half for new samples of the training law, near 0
    for copies.
    """

    index: Tensor
    distance: Tensor
    authentic: float


def nearest_neighbours(training: Array, fake: Array, k: int = 4) -> Neighbours:
    """Nearest training images of generated ones in feature space; features `(N, d)` and `(M, d)`."""
    x, y = as_pair(training, fake)
    nearest = [part.topk(min(k, len(x)), largest=False) for part in squared_distances(y, x)]
    squared = torch.cat([n.values for n in nearest])
    index = torch.cat([n.indices for n in nearest])
    hit, back = index[:, 0].unique(return_inverse=True)
    own = torch.cat([part.kthvalue(2, dim=1).values for part in squared_distances(x[hit], x)])[back]
    return Neighbours(index, squared.sqrt(), float((squared[:, 0] > own).double().mean()))


def thumbnails(images: Tensor) -> Tensor:
    """uint8 `(N, C, H, W)` -> uint8 `(N, 3, SIDE, SIDE)`: small enough to keep thousands."""
    mode = "nearest-exact" if max(images.shape[2:]) <= SIDE else "area"
    small = F.interpolate(images.float(), (SIDE, SIDE), mode=mode).round().to(torch.uint8)
    return small.expand(-1, 3, -1, -1)


def neighbour_picture(path: str | Path, images: Tensor, training: Images, nearest: Neighbours, rows: int = 12) -> None:
    """PNG: the `rows` generated images closest to the training set, each followed by its nearest training images.

    images: uint8 `(N, C, H, W)`, training: uint8 `(M, C, H, W)`, of which a few are read: those
    whose places `nearest.index` holds.
    """
    lines = []
    for i in nearest.distance[:, 0].argsort()[:rows].tolist():
        generated, *closest = thumbnails(images[i : i + 1])[0], *thumbnails(training[nearest.index[i]])
        gap = torch.full((3, SIDE, 4), 255, dtype=torch.uint8)
        lines.append(torch.cat([generated, gap, *closest], dim=2))
    sheet = torch.cat(lines, dim=1).permute(1, 2, 0).contiguous().numpy()
    with replacing(Path(path)) as partial:
        Image.fromarray(sheet).save(partial, format="PNG")
