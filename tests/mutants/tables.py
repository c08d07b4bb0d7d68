"""Results as a table of the package's areas, and the list of what survived."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .examine import Result


def read_results(file: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in file.read_text().splitlines()]


def share(results: Sequence[Result]) -> str:
    """`killed / run`, as text."""
    counted = [r for r in results if r.counts]
    return f"{sum(r.dead for r in counted)} / {len(counted)}" if counted else "-"


def table(results: Sequence[Result], before: Sequence[Result] = ()) -> str:
    """A Markdown table, a row an area: mutants killed of those run."""
    areas = sorted({r.area for r in [*results, *before]})
    head = ["| part | killed before | killed now |", "|---|---:|---:|"]
    if not before:
        head = ["| part | killed |", "|---|---:|"]
    columns = [before, results] if before else [results]
    rows = [
        " | ".join([f"| `{area}`", *(share([r for r in column if r.area == area]) for column in columns)]) + " |"
        for area in areas
    ]
    total = " | ".join(["| all", *(share(column) for column in columns)]) + " |"
    return "\n".join([*head, *rows, total]) + "\n"


def survivors(results: Sequence[Result], reasons: Mapping[str, str]) -> str:
    """A Markdown list of what no test noticed, with the reasons that are known."""
    lines = []
    for r in results:
        if r.counts and not r.dead:
            why = reasons.get(f"{r.file}: {r.name}")
            seen = "no test runs the line" if r.state == "unseen" else f"{r.tests} tests pass"
            lines.append(
                f"- `{r.file}`: {r.name} (`{r.old.strip()}` -> `{r.new.strip()}`; {seen}). {why or ''}".strip()
            )
    return "\n".join(lines) + "\n" if lines else "None.\n"
