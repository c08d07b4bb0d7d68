"""The findings of `inspect_data` in words: as text, and in the parts that a page shows."""

import os
from collections import Counter
from typing import Any

from diffdistill.data.left_out import REASONS
from diffdistill.evaluation.table import grid

NAMED = 10  # files and pairs that are named, and half as many as classes; --json has more
MODES = {
    "1": "black and white", "L": "gray", "LA": "gray with transparency", "P": "palette", "RGB": "colour",
    "RGBA": "colour with transparency", "CMYK": "CMYK", "I": "gray", "I;16": "gray", "I;16B": "gray", "F": "gray",
    "PA": "palette", "YCbCr": "colour", "LAB": "colour",
}  # fmt: skip
TRAITS = {
    "transparent": "with transparency, laid on white",
    "sixteen_bit": "of 16 bits, made 8",
    "animated": "animated, of which the first frame is taken",
    "turned": "turned as the camera says",
    "gray_as_colour": "gray though saved as colour",
    "blank": "of one colour all over",
}


def table(report: dict[str, Any]) -> str:
    """The findings as text: a line of each kind, then the classes, then what is named file by file."""
    width = max(len(name) for name, _ in facts(report)) + 2
    lines = []
    for name, texts in facts(report):
        lines += [f"{name if text is texts[0] else '':<{width}}{text}" for text in texts]
    parts = ["\n".join(lines)]
    if report["classes"] is not None:
        parts.append("\n".join([grid(*class_rows(report["classes"])), *class_lines(report["classes"])]))
    parts += ["\n".join([title, *(f"  {name}" for name in names)]) for title, names in blocks(report)]
    return "\n\n".join([*parts, _verdict(report)])


def facts(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What is known of the set as a whole: a word, and the lines about it."""
    kind = f" ({report['format']})" if report["format"] else ""
    limit = f", the first {report['limit']:,} alone" if report["limit"] else ""
    bad = report["unreadable"]["count"]
    facts = [
        ("data", [report["data"] + kind]),
        ("splits", [_splits(report["splits"])]),
        ("images", [f"{report['images']:,}{limit}" + (f", of which {bad:,} cannot be read" if bad else "")]),
    ]
    if report["readable"]:
        low, high = report["pixels"].values()
        facts += [
            ("sizes", _sizes(report["sizes"], report["readable"])),
            ("kinds", _kinds(report)),
            ("values", [f"{low} to {high} of 255"]),
            ("duplicates", [_duplicates(report["duplicates"])]),
        ]
    facts += [("captions", _captions(report["captions"]))]
    return facts if report["classes"] else [*facts, ("classes", ["none, there are no labels"])]


def _splits(splits: list[dict[str, Any]]) -> str:
    words = []
    for row in splits:
        more = ", taken" if row["taken"] else ""
        more += f", {row['unreadable']:,} cannot be read" if row["unreadable"] and not row["taken"] else ""
        more += f", {row['in_taken']:,} of them in the one taken too" if row["in_taken"] else ""
        words.append(f"{row['name']} ({row['images']:,}{more})")
    return ", ".join(words) or "none: one set, all of which is training data"


def _sizes(sizes: dict[str, Any], readable: int) -> list[str]:
    smallest, commonest, largest = ("{}x{}".format(*sizes[name]) for name in ("smallest", "commonest", "largest"))
    if sizes["distinct"] == 1:
        return [f"{commonest}, all of them"]
    return [
        f"{sizes['distinct']:,} sizes: {smallest} to {largest}, most often {commonest} ({sizes['of_commonest']:,})",
        f"{_share(sizes['oblong'], readable)} are not square",
    ]


def _share(part: int, whole: int) -> str:
    share = 100 * part / max(1, whole)
    return f"{share:.0f} %" if share >= 1 or part == 0 else "under 1 %"


def _kinds(report: dict[str, Any]) -> list[str]:
    counts: Counter[str] = Counter()
    for mode, count in report["modes"].items():
        counts[MODES.get(mode, mode)] += count
    files = ", ".join(f"{count:,} {name}" for name, count in report["file_formats"].items() if name != "array")
    modes = ", ".join(f"{count:,} {word}" for word, count in counts.most_common())
    traits = [f"{count:,} {TRAITS[name]}" for name, count in report["traits"].items() if count]
    return [modes + (f" ({files})" if files else ""), *traits]


def _captions(captions: dict[str, Any] | None) -> list[str]:
    if captions is None:
        return ["none"]
    missing = f", {captions['empty']:,} images have none or an empty one" if captions["empty"] else ""
    lines = [f"{captions['present']:,}{missing}"]
    if captions["present"]:
        lines.append("{shortest} to {longest} characters, the median is {median}".format(**captions))
        lines.append(f"the first is {_quoted(captions['first'])}")
    if captions["repeated"]:
        often = captions["commonest"]
        lines.append(
            f"{captions['repeated']:,} repeat an earlier one, most often {_quoted(often['text'])} ({often['count']:,})"
        )
    return lines


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text[:57]}...'" if len(text) > 60 else f"'{text}'"


def _duplicates(found: dict[str, Any]) -> str:
    if not found["groups"]:
        return "none"
    mixed = f"; {found['of_several_classes']:,} are in several classes" if found["of_several_classes"] else ""
    return f"{found['surplus']:,} repeat an earlier picture, pixel by pixel{mixed}"


def class_rows(classes: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of classes; a column for what cannot be read where there is any."""
    rows = classes["rows"]
    shown = rows if len(rows) <= 2 * NAMED else rows[: 2 * NAMED - 1]
    whole = sum(row["images"] for row in rows)
    bad = any(row["unreadable"] for row in rows)
    cells = [
        [_name(row), str(row["label"]), f"{row['images']:,}", _share(row["images"], whole), f"{row['unreadable']:,}"]
        for row in shown
    ]
    if classes["unlabelled"]:
        cells.append(["(no label)", "", f"{classes['unlabelled']:,}", "", ""])
    columns = 5 if bad else 4
    return ["class", "label", "images", "share", "unreadable"][:columns], [row[:columns] for row in cells]


def class_lines(classes: dict[str, Any]) -> list[str]:
    """What is said below the table of classes."""
    more = len(classes["rows"]) - len(class_rows(classes)[1]) + (1 if classes["unlabelled"] else 0)
    lines = [f"... and {more:,} more classes (--json has all)"] if more > 0 else []
    if (ratio := classes["imbalance"] or 1) > 1.5:
        lines.append(f"the largest class has {ratio:,.1f} times as many images as the smallest")
    return lines


def _name(row: dict[str, Any]) -> str:
    return f"class {row['label']}" if row["name"] is None else " ".join(row["name"].split())[:40]


def blocks(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """A title with a number, and the first by name: what cannot be read and why, duplicates, what is left out."""
    bad, same = report["unreadable"], report["duplicates"]
    found = [("cannot be read", bad["count"], [file["reason"] for file in bad["files"]])]
    found.append(("the same picture", same["groups"], [" = ".join(group[:4]) for group in same["files"]]))
    for row in report["splits"]:
        pairs = [f"{theirs} = {mine}" for mine, theirs in row["pairs"]]
        found.append((f"in '{row['name']}' and in the split taken", row["in_taken"], pairs))
    found += [
        (f"left out: {REASONS[why]}", files["count"], files["files"]) for why, files in report["left_out"].items()
    ]
    return [(f"{title} ({count:,})", _first(report, names, count)) for title, count, names in found if count]


def _first(report: dict[str, Any], names: list[str], count: int) -> list[str]:
    shown = [name.replace(report["data"] + os.sep, "") for name in names[:NAMED]]
    return [*shown, f"... and {count - len(shown):,} more"] if count > len(shown) else shown


def seen(report: dict[str, Any]) -> str:
    """What training would see, in a line; what there is, where it would refuse it."""
    training = report["training"]
    shape = "" if training["shape"] is None else " of ({}, {}, {})".format(*training["shape"])
    classes = "no classes" if training["classes"] is None else f"{training['classes']:,} classes"
    return f"{training['images']:,} images{shape}, {classes}, {'captions' if training['captions'] else 'no captions'}"


def faults(report: dict[str, Any]) -> list[str]:
    """What training refuses, a sentence each."""
    return [
        fault["reason"].replace(report["data"] + os.sep, "")
        + (f" (and {fault['count'] - 1:,} more)" if fault["count"] > 1 else "")
        for fault in report["training"]["refused"]
    ]


def _verdict(report: dict[str, Any]) -> str:
    training = report["training"]
    lines = [f"note: {note}" for note in training["notes"]]
    if training["reads"]:
        low, high = training["range"]
        return "\n".join([*lines, f"training sees {seen(report)}, values as {low} to {high}"])
    return "\n".join([*lines, "training refuses this:", *(f"  {sentence}" for sentence in faults(report))])
