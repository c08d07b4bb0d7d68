"""`diffdistill data inspect`: what `inspect_data` found as a table, a contact sheet, JSON."""

import os
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from diffdistill.data.inspect import inspect_data
from diffdistill.data.left_out import REASONS
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.table import grid
from diffdistill.files import new_folder
from diffdistill.outputs import check_output, has_keys, is_stdout, write_answer
from diffdistill.reporting.contact_sheet import CLASSES, Samples, contact_sheet

NAMED = 10  # files, classes and pairs that the table names; --json has more
SHEET = "contact_sheet.png"
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


def run(args: Namespace) -> int:
    """Look, print, write; raises DataError, as training would, once all of that is done."""
    target = None if args.out is None else Path(args.out)
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out '{target}' already exists and is not an empty folder; name a new one")
    if args.json is not None:
        check_output(args.json, "--json", has_keys("data", "training", "left_out"))
    samples = Samples(args.image_size)
    watch = None if target is None else samples
    report = inspect_data(args.data, args.split, args.image_size, args.limit, watch)
    text = table(report)
    print(text, file=sys.stderr if is_stdout(args.json) else sys.stdout)
    if args.json is not None:
        write_answer(args.json, report)
    if target is not None:
        with new_folder(target) as folder:
            sheet_of(report, samples).save(folder / SHEET)
        print(f"\n{target / SHEET}", file=sys.stderr if is_stdout(args.json) else sys.stdout)
    if report["training"]["refused"]:
        sys.stdout.flush()
        raise DataError(report["training"]["refused"][0]["reason"])
    return 0


def sheet_of(report: dict[str, Any], samples: Samples) -> Any:
    """The contact sheet as a Pillow image."""
    classes = report["classes"]
    titles = {} if classes is None else {row["label"]: _title(row) for row in classes["rows"]}
    if classes is not None and classes["unlabelled"]:
        titles[-1] = f"(no label)\n{classes['unlabelled']:,}"
    more = 0 if classes is None else classes["count"] - classes["without_images"] - CLASSES
    below = f"and {more:,} more classes" if more > 0 else ""
    return contact_sheet(f"{report['data']}: {seen(report)}", samples.rows(titles), below)


def _title(row: dict[str, Any]) -> str:
    name = f"class {row['label']}" if row["name"] is None else f"{row['label']} {row['name']}"
    return f"{name}\n{row['images']:,}"


def table(report: dict[str, Any]) -> str:
    """The findings as text: a line of each kind, then the classes, then what is named file by file."""
    width = max(len(name) for name, _ in _facts(report)) + 2
    lines = []
    for name, texts in _facts(report):
        lines += [f"{name if text is texts[0] else '':<{width}}{text}" for text in texts]
    parts = ["\n".join(lines)]
    for part in (_classes(report["classes"]), _files(report), _verdict(report)):
        parts += [part] if part else []
    return "\n\n".join(parts)


def _facts(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
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


def _classes(classes: dict[str, Any] | None) -> str:
    if classes is None:
        return ""
    rows = classes["rows"]
    shown = rows if len(rows) <= 2 * NAMED else rows[: 2 * NAMED - 1]
    whole = sum(row["images"] for row in rows)
    bad = any(row["unreadable"] for row in rows)
    header = ["class", "label", "images", "share", *(["unreadable"] if bad else [])]
    cells = [
        [_name(row), str(row["label"]), f"{row['images']:,}", _share(row["images"], whole)]
        + ([f"{row['unreadable']:,}"] if bad else [])
        for row in shown
    ]
    if classes["unlabelled"]:
        cells.append(["(no label)", "", f"{classes['unlabelled']:,}", "", *([""] if bad else [])])
    lines = [grid(header, cells)]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown):,} more classes (--json has all)")
    if (ratio := classes["imbalance"] or 1) > 1.5:
        lines.append(f"the largest class has {ratio:,.1f} times as many images as the smallest")
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    return f"class {row['label']}" if row["name"] is None else " ".join(row["name"].split())[:40]


def _files(report: dict[str, Any]) -> str:
    """Unreadable pictures with their reasons, duplicates, and files that are left out, the first of each by name."""
    blocks = []
    bad, folder = report["unreadable"], report["data"] + os.sep
    if bad["count"]:
        names = [file["reason"].replace(folder, "") for file in bad["files"]]
        blocks.append(_block("cannot be read", bad["count"], names))
    same = report["duplicates"]
    if same["groups"]:
        groups = [" = ".join(name.replace(folder, "") for name in group[:4]) for group in same["files"]]
        blocks.append(_block("the same picture", same["groups"], groups))
    for row in report["splits"]:
        pairs = [f"{theirs} = {mine}".replace(folder, "") for mine, theirs in row["pairs"]]
        if pairs:
            blocks.append(_block(f"in '{row['name']}' and in the split taken", row["in_taken"], pairs))
    for reason, found in report["left_out"].items():
        blocks.append(_block(f"left out: {REASONS[reason]}", found["count"], found["files"]))
    return "\n\n".join(blocks)


def _block(title: str, count: int, names: list[str]) -> str:
    shown = names[:NAMED]
    more = [f"... and {count - len(shown):,} more"] if count > len(shown) else []
    return "\n".join([f"{title} ({count:,})", *(f"  {name}" for name in [*shown, *more])])


def seen(report: dict[str, Any]) -> str:
    """What training would see, in a line; what there is, where it would refuse it."""
    training = report["training"]
    shape = "" if training["shape"] is None else " of ({}, {}, {})".format(*training["shape"])
    classes = "no classes" if training["classes"] is None else f"{training['classes']:,} classes"
    return f"{training['images']:,} images{shape}, {classes}, {'captions' if training['captions'] else 'no captions'}"


def _verdict(report: dict[str, Any]) -> str:
    training = report["training"]
    lines = [f"note: {note}" for note in training["notes"]]
    if training["reads"]:
        low, high = training["range"]
        lines.append(f"training sees {seen(report)}, values as {low} to {high}")
    else:
        folder = report["data"] + os.sep
        lines.append("training refuses this:")
        for fault in training["refused"]:
            more = f" (and {fault['count'] - 1:,} more)" if fault["count"] > 1 else ""
            lines.append(f"  {fault['reason'].replace(folder, '')}{more}")
    return "\n".join(lines)
