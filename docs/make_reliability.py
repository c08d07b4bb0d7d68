"""Writes docs/reliability.md from the counts of the fault suite.

python docs/make_reliability.py FOLDER     of the counts of a run, a JSON file an attack, and what note.txt says of it
python docs/make_reliability.py            the page alone, from docs/reliability.json
python docs/make_reliability.py --check    exit code 1 where the page is not up to date
"""

import json
import os
import platform
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("reliability.md")
COUNTS = PAGE.with_suffix(".json")
HEAD = """# Reliability: what was tried, and what came of it

Written by `make faults` (`docs/make_reliability.py`), from the counts of the run: nothing here is typed by hand. Tries
are made by the real command line, or the function that a command reads a file with, on networks of a few thousand
parameters; each has a seed, so a wrong one can be made again. **Wrong** counts the tries that did not end as they
must: a lost checkpoint, another result without a word, a traceback, code that ran. The suite is `tests/faults/`; a
small part of it (`make faults-ci`) is run with every change, and `FAULTS=20 pytest -m fault tests/faults` tries each
attack twenty times."""
FAMILIES = {
    "kills": "Kills",
    "damage": "Damaged files",
    "disk": "Failing disks",
    "lies": "Headers that lie",
    "pickles": "Hostile files",
    "inputs": "Malformed inputs, by a fuzzer",
    "soak": "Long runs",
    "cost": "What safety costs",
}
Row = dict[str, Any]


def collected(folder: Path) -> dict[str, Any]:
    """The counts of a run, and the machine that made them."""
    rows = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    if not rows:
        sys.exit(f"'{folder}' holds no counts; run make faults")
    packages = ("torch", "diffusers", "safetensors", "numpy")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "note": note.read_text("utf-8").strip() if (note := folder / "note.txt").is_file() else "",
        "attacks": rows,
    }


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


def table(rows: list[Row]) -> str:
    lines = ["| attack | tries | what came of them | wrong | seconds |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["attack"]):
        outcomes = "; ".join(f"{name}: {count:,}" for name, count in row["outcomes"].items())
        facts = ", ".join(f"{name}: {number(value)}" for name, value in row["facts"].items())
        came = "; ".join(filter(None, [outcomes, facts]))
        wrong = f"**{row['wrong']:,}**" if row["wrong"] else "0"
        lines.append(f"| {row['attack']} | {row['tries']:,} | {came} | {wrong} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def tables(rows: list[Row]) -> list[str]:
    """What must come of every try, then the attacks of which it must."""
    by_right: dict[str, list[Row]] = {}
    for row in rows:
        by_right.setdefault(row["right"], []).append(row)
    return [part for right, own in by_right.items() for part in (wrapped(f"Must: {right}."), table(own))]


def wrapped(text: str) -> str:
    """Lines of prose of at most 119 characters."""
    return textwrap.fill(text, 119, break_on_hyphens=False, break_long_words=False)


def page(counts: dict[str, Any]) -> str:
    rows: list[Row] = counts["attacks"]
    scales = sorted({row["scale"] for row in rows})
    short = "" if scales == ["full"] else f" **A shorter run than `make faults`: FAULTS={', '.join(scales)}.**"
    packages = ", ".join(
        f"{name} {found}" for name, found in {"Python": counts["python"], **counts["versions"]}.items()
    )
    total, wrong = (sum(row[key] for row in rows) for key in ("tries", "wrong"))
    facts = (
        f"{total:,} tries of {len(rows)} attacks, {wrong:,} wrong.{short} {counts['date']}, {counts['machine']}, "
        f"{packages}; "
        f"{sum(row['seconds'] for row in rows) / 60:.0f} minutes of one core."
    )
    parts = [HEAD, wrapped(facts), *([wrapped(counts["note"])] if counts.get("note") else [])]
    for family, title in FAMILIES.items():
        if own := [row for row in rows if row["family"] == family]:
            parts += [f"## {title}", *tables(own)]
    return "\n\n".join(parts) + "\n"


def main(words: list[str]) -> None:
    if words and words[0] != "--check":
        COUNTS.write_text(json.dumps(collected(Path(words[0])), indent=1) + "\n", encoding="utf-8")
    written = page(json.loads(COUNTS.read_text("utf-8")))
    if "--check" in words:
        sys.exit(PAGE.read_text("utf-8") != written and "docs/reliability.md is old: python docs/make_reliability.py")
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
