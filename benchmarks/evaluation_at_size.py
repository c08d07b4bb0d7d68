"""CPU seconds of an evaluation's arithmetic at size: moments, KID and FID's standard error, beside the bare products.

    python benchmarks/evaluation_at_size.py                     2,048 features, 50,000 images: minutes
    python benchmarks/evaluation_at_size.py --dim 256 --images 5000 --repeats 1
    python benchmarks/evaluation_at_size.py --json bench.json

Times are CPU seconds of one thread, the least of the repeats, so that a busy machine hardly changes them. The bare
product is the same batches, multiplied into one matrix and nothing else.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy start their threads

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdistill.evaluation.frechet import fit, frechet_terms
from diffdistill.evaluation.kernel import kernel_distance

BATCHES = (16, 250)
FEW = 5000  # images of an ordinary evaluation of a model


def features(n: int, dim: int, seed: int, stretch: float = 1.0) -> Tensor:
    """Correlated features with variances over four orders of magnitude, as a trained network has; float64."""
    scale = torch.logspace(0, -2, dim, dtype=torch.float64) * stretch
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(n, dim, dtype=torch.float64)
    for part in found.split(4096):
        torch.matmul(torch.randn(part.shape, generator=generator, dtype=torch.float64) * scale, mixing, out=part)
    return found


def least(compute: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the fastest of the repeats."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        compute()
        found.append(time.process_time() - start)
    return round(min(found), 2)


def bare(x: Tensor, batch: int) -> None:
    matrix = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(batch):
        matrix.addmm_(part.T, part)


def streamed(x: Tensor, batch: int) -> None:
    try:
        from diffdistill.evaluation.moments import Moments
    except ImportError:  # before the moments had a file of their own
        from diffdistill.evaluation.frechet import Moments
    moments = Moments(x.shape[1])
    for part in x.split(batch):
        moments.update(part)
    moments.gaussian()


def error_of(x: Tensor, y: Tensor) -> Callable[[], float]:
    """FID's standard error as an evaluation has it, from Gaussians that are there already."""
    reference, fitted = fit(x), fit(y)
    try:
        from diffdistill.evaluation.frechet_error import delta_error
    except ImportError:  # when it was the spread of ten resamples
        from diffdistill.evaluation.frechet import bootstrap_error  # type: ignore[attr-defined]

        return lambda: bootstrap_error(reference, y, resamples=10 if y.shape[1] > 512 else 50)
    return lambda: delta_error(reference, fitted, y)


def pictures(size: int) -> dict[str, Any]:
    """Milliseconds and kB of a PNG of one photograph-like picture, at each level of compression."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(128, 60, (1, 3, size // 16, size // 16)))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0]
    noisy = smooth + torch.from_numpy(rng.normal(0, 2, (3, size, size)))
    picture = Image.fromarray(noisy.clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return {f"level {level}": written(picture, level) for level in range(1, 10)}


def written(picture: Image.Image, level: int) -> dict[str, float]:
    import io

    def save() -> io.BytesIO:
        stream = io.BytesIO()
        picture.save(stream, "PNG", compress_level=level)
        return stream

    return {"ms": round(least(lambda: [save() for _ in range(10)], 3) * 100, 1), "kB": len(save().getvalue()) // 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"dim": args.dim, "images": args.images, "torch": torch.__version__}

    def note(name: str, value: Any) -> None:
        figures[name] = value
        print(f"{name:<60} {value}", flush=True)

    def timed(name: str, compute: Callable[[], Any]) -> None:
        note(name, least(compute, args.repeats))

    x, y = features(args.images, args.dim, 0), features(args.images, args.dim, 1, 1.1)
    for batch in BATCHES:
        timed(f"the bare product, batches of {batch}", lambda batch=batch: bare(x, batch))  # type: ignore[misc]
        timed(f"moments, batches of {batch}", lambda batch=batch: streamed(x, batch))  # type: ignore[misc]
    a, b = fit(x), fit(y)
    timed("the distance of two Gaussians", lambda: frechet_terms(a, b))
    timed(f"its error, {len(y)} images", error_of(x, y))
    few = min(FEW, args.images)
    for n, m in ((few, few), (args.images, few), (min(args.images, 2**26 // args.dim),) * 2):
        timed(f"KID, {n} and {m} images", lambda n=n, m=m: kernel_distance(x[:n], y[:m]))  # type: ignore[misc]
    note("a PNG of 512 pixels", pictures(512))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
