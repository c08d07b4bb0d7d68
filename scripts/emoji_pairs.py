"""Pairs of one emoji in two drawing styles, in Pick-a-Pic's columns: the style wanted wins everywhere.

    python scripts/emoji_pairs.py train.parquet pairs.parquet [--want twemoji]

The source has the columns image, text, style and codepoint; the pair's caption names the concept and not the style, so
that a model aligned on the pairs must draw the wanted style unasked.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

STYLES = ("noto", "twemoji")


def caption(text: str, style: str) -> str:
    """`a noto style emoji of clock8` -> `an emoji of clock8`."""
    return text.replace(f"a {style} style emoji", "an emoji")


def emoji_pairs(rows: list[dict], want: str) -> dict[str, list]:
    """Columns of the pairs, in the order of the source; concepts drawn in one style only are left out."""
    by_style: dict[str, dict[str, dict]] = {style: {} for style in STYLES}
    for row in rows:
        by_style[row["style"]][row["codepoint"]] = row
    first, second = (by_style[style] for style in STYLES)
    both = [code for code in first if code in second]
    return {
        "jpg_0": [first[code]["image"]["bytes"] for code in both],
        "jpg_1": [second[code]["image"]["bytes"] for code in both],
        "label_0": [float(want == STYLES[0])] * len(both),
        "label_1": [float(want == STYLES[1])] * len(both),
        "caption": [caption(first[code]["text"], STYLES[0]) for code in both],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--want", choices=STYLES, default=STYLES[0])
    args = parser.parse_args()
    source = pq.read_table(args.source, columns=["image", "text", "style", "codepoint"]).to_pylist()
    columns = emoji_pairs(source, args.want)
    pq.write_table(pa.table(columns), args.out)
    print(f"{args.out}: {len(columns['caption'])} pairs, {args.want} wanted")
