"""The findings of `inspect_data` as a page of HTML, which needs no other file and no network."""

from html import escape
from pathlib import Path
from typing import Any

from diffdistill.reporting.findings import blocks, class_lines, class_rows, facts, faults, seen
from diffdistill.reporting.page import HEAD, MARKS, document, pairs, picture, section

# Not that of a report, which `diffdistill report` may replace.
OWN_HEAD = HEAD.replace("<html ", '<html class="inspection" ')


def findings_page(report: dict[str, Any], sheet: Path) -> str:
    """The whole page; `sheet` is the file of the contact sheet, which is put into it."""
    name = escape(report["data"])
    header = (
        f'<header><p class="kicker">diffdistill data inspect</p><h1>{name}</h1><p class="lead">{escape(seen(report))}'
        "</p></header>"
    )
    known = {word: "; ".join(lines) for word, lines in facts(report) if word != "data"}
    named = "".join(
        f'<div class="card"><h3>{escape(title)}</h3><pre>{escape(chr(10).join(names))}</pre></div>'
        for title, names in blocks(report)
    )
    inside = [
        header,
        section("health", "What training sees", _verdicts(report)),
        section("sheet", "Pictures", picture(sheet, "The first of each class, or from all over the set", "large")),
        section("facts", "The set", pairs(known)),
        section("classes", "Classes", "" if report["classes"] is None else _classes(report["classes"])),
        section("files", "File by file", f'<div class="pair">{named}</div>' if named else ""),
    ]
    return document(report["data"], "".join(inside), OWN_HEAD)


def _verdicts(report: dict[str, Any]) -> str:
    items = [("bad", "Refused", sentence) for sentence in faults(report)]
    items += [("watch", "Note", note) for note in report["training"]["notes"]]
    items = items or [("good", "Read", f"Training sees {seen(report)}.")]
    lines = (
        f'<li class="{kind}"><i aria-hidden="true">{MARKS[kind]}</i>'
        f"<div><b>{title}</b><p>{escape(text)}</p></div></li>"
        for kind, title, text in items
    )
    return f'<ul class="health">{"".join(lines)}</ul>'


def _classes(classes: dict[str, Any]) -> str:
    header, rows = class_rows(classes)
    head = "".join(f"<th>{word}</th>" for word in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    below = "".join(f'<p class="hint">{escape(line)}</p>' for line in class_lines(classes))
    table = f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>{below}'
