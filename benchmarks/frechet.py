"""Speed and memory of the Fréchet distance against the matrix square root that other tools take.

    python benchmarks/frechet.py                      d = 2,048, n = 10,000: minutes, nearly all of them in sqrtm
    python benchmarks/frechet.py --dim 256 --images 2000
    python benchmarks/frechet.py --json bench.json

Times are CPU seconds of one thread, so that a busy machine does not change them; memory is the peak of a fresh process
that streams N images, less that of one that streams 1,000.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy start their threads

import numpy as np
import torch
from torch import Tensor

from diffdistill.evaluation.frechet import fit, frechet_terms
from diffdistill.evaluation.moments import Gaussian, Moments

BATCH = 500


def features(n: int, dim: int, seed: int) -> Tensor:
    """Correlated features with variances over four orders of magnitude, as a trained network has."""
    scale = torch.logspace(0, -2, dim, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    return (torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale) @ mixing


def timed(compute: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = compute()
    return result, time.process_time() - start


def by_square_root(a: Gaussian, b: Gaussian) -> float:
    """The distance as clean-fid computes it, in float64."""
    import scipy.linalg

    gap, first, second = (a.mean - b.mean).numpy(), a.covariance.numpy(), b.covariance.numpy()
    root = scipy.linalg.sqrtm(first @ second)
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def stream(n: int, dim: int) -> None:
    """Accumulate n images' features in batches and print the peak memory of this process in MB."""
    generator, moments = torch.Generator().manual_seed(0), Moments(dim)
    for _ in range(n // BATCH):
        moments.update(torch.randn(BATCH, dim, generator=generator))
    gaussian = moments.gaussian()
    frechet_terms(gaussian, gaussian)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(n: int, dim: int) -> float:
    words = [sys.executable, __file__, "--stream", str(n), "--dim", str(dim)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)  # what a measured child process does
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stream:
        return stream(args.stream, args.dim)
    small = min(args.dim, 512)
    memory = {n: peak(n, small) for n in (1000, 10_000, 100_000)}
    x, y = features(args.images, args.dim, 0), features(args.images, args.dim, 1) * 1.1
    (a, b), fitting = timed(lambda: (fit(x), fit(y)))
    ours, distance = timed(lambda: frechet_terms(a, b).value)
    theirs, root = timed(lambda: by_square_root(a, b))
    figures = {
        "dim": args.dim,
        "images": args.images,
        "seconds": {"statistics of both sets": fitting, "our distance": distance, "distance by sqrtm": root},
        "faster": root / distance,
        "value": ours,
        "relative difference": abs(ours - theirs) / theirs,
        f"peak MB over 1,000 images, d = {small}": {str(n): memory[n] - memory[1000] for n in memory},
        "versions": {"torch": torch.__version__, "scipy": metadata.version("scipy")},
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
