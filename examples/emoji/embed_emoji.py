"""Makes `assets/emoji/` from parquet files of emoji in two styles (Noto: Apache-2.0; Twemoji: CC BY 4.0).

    python examples/emoji/embed_emoji.py TRAIN.parquet TEST.parquet [OUT]

Columns `image`, `text`, `style`, `name`, `category` and `codepoint`. Pictures are reduced to 32x32 (bicubic,
antialiased) and kept as IDX files under xz, in the order of the source; captions as JSON lines beside them. One style
of some 200 concepts of TRAIN becomes the split `held_out` (emoji_data.py: `held_out_style`).
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from emoji_data import STYLES, captions_file, held_out_style

from diffdistill.data import fingerprint, load_images

sys.path.append(str(Path(__file__).parents[1] / "fashion_mnist"))
from embed_fashion_mnist import write_idx

SIZE = 32
COLUMNS = ("text", "style", "name", "category", "codepoint")
SOURCE = "npm emoji-datasource-google and emoji-datasource-twitter 16.0.0 (iamcal/emoji-data), 64x64 on white"
# How the library pairs these images, see diffdistill/data/formats/builtin.py.
PAIR = {"same": "codepoint", "differ": "style", "values": list(STYLES), "win": "noto",
        "caption": ["a {style} style emoji", "an emoji"], "partners": {"held_out": "train"}}  # fmt: skip
PAIRS = {"emoji_pairs": PAIR, "emoji_pairs_twemoji": PAIR | {"win": "twemoji"}}


def read(path: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Images uint8 (N, 32, 32, 3) and the columns of each."""
    images = load_images(str(path), image_size=SIZE, channels=3).images.permute(0, 2, 3, 1).contiguous().numpy()
    return images, pq.read_table(path, columns=list(COLUMNS)).select(COLUMNS).to_pylist()


def write_split(out: Path, prefix: str, images: np.ndarray, rows: list[dict[str, str]]) -> tuple[dict, dict]:
    """Writes images and captions; returns what the manifest says of the split and of the files."""
    captions = captions_file(out, prefix)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    captions.write_text(lines, encoding="utf-8", newline="\n")
    file = f"{prefix}-images-idx4-ubyte.xz"
    files = {
        file: write_idx(out / file, images),
        captions.name: {
            "bytes": captions.stat().st_size,
            "sha256": hashlib.sha256(captions.read_bytes()).hexdigest(),
        },
    }
    texts = tuple(row["text"] for row in rows)
    split = {
        "count": len(rows),
        "per_style": {style: sum(row["style"] == style for row in rows) for style in STYLES},
        "fingerprint": fingerprint(images.transpose(0, 3, 1, 2), None, texts),
    }
    return split, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path("assets/emoji"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images, rows = read(args.train)
    held = np.array([held_out_style(row["codepoint"]) == row["style"] for row in rows])
    parts = {
        "train": (images[~held], [row for row, out in zip(rows, held, strict=True) if not out]),
        "held_out": (images[held], [row for row, out in zip(rows, held, strict=True) if out]),
        "t10k": read(args.test),
    }
    manifest: dict = {"name": "emoji", "source": SOURCE, "licence": "Apache-2.0 and CC BY 4.0, see LICENSE.md"}
    manifest |= {"features": "emoji", "table": captions_file(Path(), "{split}").name, "pairs": PAIRS}
    manifest |= {"splits": {}, "files": {}}
    for prefix, (pixels, captions) in parts.items():
        manifest["splits"][prefix], files = write_split(args.out, prefix, pixels, captions)
        manifest["files"] |= files
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
