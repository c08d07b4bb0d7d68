"""A table over training seeds: of each row the mean of every figure, and the least and the greatest."""

import statistics
from collections.abc import Mapping, Sequence


def seed_table(
    heads: Sequence[str], rows: Mapping[tuple[str, ...], Sequence[Mapping[str, float]]], figures: Sequence[str]
) -> str:
    """Lines of it; rows: what stands under `heads`, to the figures of each seed.

    >>> print(seed_table(("model",), {("a",): [{"fid": 1.0}, {"fid": 2.0}]}, ("fid",)))
    model  seeds                      fid
    a          2   1.500 (1.000 to 2.000)
    """
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]

    def line(names: Sequence[str], count: str, cells: Sequence[str]) -> str:
        left = [name.ljust(width) for name, width in zip(names, widths, strict=True)]
        return "  ".join([*left, f"{count:>5}", *(f"{cell:>23}" for cell in cells)])

    def cell(values: Sequence[float]) -> str:
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    lines = [line(heads, "seeds", figures)]
    for names, seeds in rows.items():
        lines.append(line(names, str(len(seeds)), [cell([one[figure] for one in seeds]) for figure in figures]))
    return "\n".join(lines)
