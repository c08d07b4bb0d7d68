"""What the scripts of this folder do with their lines of results: docs/claims.json, and a table to print."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

CLAIMS = Path(__file__).parents[2] / "docs" / "claims.json"
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, the latter with two digits."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    deviation = stdev(values)
    digits = 3 if deviation < 0.01 else 2 if deviation < 1 else 1
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"


def write_claim(
    name: str,
    protocol: Row,
    rows: Sequence[Row],
    tuning: Sequence[Row],
    rivals: Sequence[str],
    columns: dict[str, str],
    world: Row | None = None,
) -> None:
    """Put a claim's runs into docs/claims.json, in place of what it had there, and print its table."""
    every = json.loads(CLAIMS.read_text()) if CLAIMS.exists() else {}
    order = {rival: place for place, rival in enumerate(rivals)}
    known = [row for row in rows if row["rival"] in order]
    runs = sorted(known, key=lambda row: (order[row["rival"]], row["seed"]))
    every[name] = {"protocol": protocol, "world": world or {}, "runs": runs, "tuning": list(tuning)}
    parts = [f"{json.dumps(key)}: {compact(value)}" for key, value in every.items()]
    CLAIMS.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print("| method | rate | seeds | " + " | ".join(columns.values()) + " |")
    print("|---" * (3 + len(columns)) + "|")
    for rival in rivals:
        found = [row for row in runs if row["rival"] == rival]
        if found:
            texts = [spread([float(row[column]) for row in found]) for column in columns]
            print(f"| {rival} | {found[0]['rate']:g} | {len(found)} | {' | '.join(texts)} |")
    for label, entry in (world or {}).items():
        if isinstance(entry, dict):
            texts = [f"{entry[column]:.3g}" if column in entry else "" for column in columns]
            print(f"| {label} | | | {' | '.join(texts)} |")


def print_pairs(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], columns: dict[str, str]) -> None:
    """Differences of rivals at the same seed, so from the same start: mean ± standard error."""
    print("\n| difference | " + " | ".join(columns.values()) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for first, second in pairs:
        of = {name: {row["seed"]: row for row in rows if row["rival"] == name} for name in (first, second)}
        seeds = sorted(of[first].keys() & of[second].keys())
        if len(seeds) < 2:
            continue
        texts = []
        for column in columns:
            values = [of[first][seed][column] - of[second][seed][column] for seed in seeds]
            texts.append(f"{mean(values):+.2f} ± {stdev(values) / len(values) ** 0.5:.2f}")
        print(f"| {first} − {second} | {' | '.join(texts)} |")


def compact(value: Any) -> str:
    """JSON with a line a run."""
    if not isinstance(value, dict):
        return json.dumps(value)
    parts = []
    for key, entry in value.items():
        lists = isinstance(entry, list) and entry and isinstance(entry[0], dict)
        text = "[\n  " + ",\n  ".join(json.dumps(row) for row in entry) + "\n ]" if lists else json.dumps(entry)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
