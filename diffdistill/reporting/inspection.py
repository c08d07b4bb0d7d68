"""`diffdistill data inspect`: what `inspect_data` found, printed, written, drawn."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from PIL import Image

from diffdistill.data.inspect import inspect_data
from diffdistill.errors import ConfigError, DataError
from diffdistill.files import new_folder, write_text
from diffdistill.outputs import check_output, has_keys, is_stdout, write_answer
from diffdistill.reporting.contact_sheet import CLASSES, Samples, contact_sheet
from diffdistill.reporting.findings import seen, table
from diffdistill.reporting.findings_page import findings_page

SHEET, PAGE = "contact_sheet.png", "index.html"


def run(args: Namespace) -> int:
    """Look, print, write; raises DataError, as training would, once all of that is done."""
    target = None if args.out is None else Path(args.out)
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out '{target}' already exists and is not an empty folder; name a new one")
    if target is not None and Path(args.data).is_dir() and target.resolve().is_relative_to(Path(args.data).resolve()):
        raise ConfigError(f"--out '{target}' lies in the set, of which it would become a part; name a folder outside")
    if args.json is not None:
        check_output(args.json, "--json", has_keys("data", "training", "left_out"))
    samples = None if target is None else Samples(args.image_size)
    report = inspect_data(args.data, args.split, args.image_size, args.limit, samples)
    said = sys.stderr if is_stdout(args.json) else sys.stdout
    print(table(report), file=said)
    if args.json is not None:
        write_answer(args.json, report)
    if target is not None and samples is not None:
        with new_folder(target) as folder:
            sheet_of(report, samples).save(folder / SHEET)
            page = findings_page(report, folder / SHEET)
            # Names of folders may be no UTF-8.
            write_text(folder / PAGE, page.encode("utf-8", "backslashreplace").decode())
        print(f"\n{target / SHEET}\n{target / PAGE}", file=said)
    if report["training"]["refused"]:
        raise DataError(report["training"]["refused"][0]["reason"])
    return 0


def sheet_of(report: dict[str, Any], samples: Samples) -> Image.Image:
    """The contact sheet of the pictures that were kept."""
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
