"""The report's HTML: sections in the order a reader asks."""

import base64
import io
import warnings
from html import escape
from pathlib import Path

from PIL import Image

from diffdistill import __version__
from diffdistill.data.pixels import UNREADABLE
from diffdistill.reporting.charts import charts
from diffdistill.reporting.health import verdicts
from diffdistill.reporting.rundata import RunData
from diffdistill.reporting.tables import headline, metrics_table, protocol

SHOWN_GRIDS, SHOWN_PICTURES = 12, 12
SMALL_WORDS = 800  # pixels of width above which the words under pictures could not be read on half the page
MOST_PIXELS = 1 << 24  # of a picture: a grid of 100 images with their texts has half as many
# How every report begins, of this version and of older ones; by it a report is known from other files.
HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
)

STYLE = Path(__file__).with_name("report.css")
MARKS = {"good": "✓", "watch": "!", "bad": "✕"}


def page(run: RunData) -> str:
    """The whole report; needs no other file and no network."""
    title, figures = run.folder.resolve().name.replace("_", " "), charts(run)
    sections = [
        _header(run, title),
        _tiles(run),
        _samples(run),
        section("health", "Health", _health(run)),
        section("figures", "Metrics", _figures(run)),
        section("curves", "Curves", f'<div class="grid">{"".join(figures)}</div>' if figures else ""),
        section("history", "Samples over time", _history(run)),
        section("settings", "Settings", _settings(run)),
        _footer(run),
    ]
    return document(title, "".join(sections))


def document(title: str, inside: str, head: str = HEAD) -> str:
    """A whole page in the style of the reports."""
    return (
        f'{head}<meta name="generator" content="diffdistill {__version__}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text('utf-8')}</style></head>"
        f"<body><main>{inside}</main></body></html>\n"
    )


def _header(run: RunData, title: str) -> str:
    teacher, source = run.config.get("teacher"), run.config.get("data") or {}
    data = source.get("prompts") or source.get("path")
    method = (run.config.get("method") or {}).get("name")
    if teacher:
        levels = len(run.model.get("levels", ())) or (run.config.get("student") or {}).get("steps", 1)
        steps = "one-step" if levels == 1 else f"{levels}-step"
        words = f"A {escape(steps)} student of <code>{escape(str(teacher))}</code>"
        words += f", distilled with <code>{escape(str(method))}</code>" if method else ""
    elif run.verb == "align":
        words = f"<code>{escape(str(run.config['model']))}</code> aligned with preferences"
        words += f", by <code>{escape(str(method))}</code>" if method else ""
        words += ","
    else:
        words = _trained(run)
    words += f" on <code>{escape(str(data))}</code>" if data else ""
    started = str(run.environment.get("started", "")).replace("T", " ").replace("Z", " UTC")
    kicker = " · ".join(part for part in ("diffdistill report", started) if part)
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1><p class="lead">{words}.</p></header>'
    )


def _trained(run: RunData) -> str:
    """What `train` makes; before it is published the run has the name of its objective alone."""
    objective = (run.config.get("objective") or {}).get("name", "denoising")
    unpublished = "denoising score matching" if objective == "denoising" else f"<code>{escape(objective)}</code>"
    training = escape(str(run.model["training"])) if run.model.get("training") else unpublished
    levels = len(run.model.get("levels") or ()) if run.model.get("role") == "student" else 0
    kind = {0: "diffusion", 1: "one-step"}.get(levels, f"{levels}-step")
    if objective in ("consistency", "scm") and not levels:
        kind = "consistency"
    return f"A {kind} model trained by {training}"


def _tiles(run: RunData) -> str:
    tiles = headline(run)
    if not tiles:
        return ""
    inside = "".join(
        f'<div class="tile"><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(rest)}</small></dd></div>'
        for label, value, rest in tiles
    )
    return f'<dl class="tiles">{inside}</dl>'


def section(name: str, title: str, inside: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{inside}</section>' if inside else ""


def _samples(run: RunData) -> str:
    """The last grid beside other pictures of the run: the teacher's, or what an aligning run started from."""
    shown = []
    if run.verb == "align" and len(run.grids) > 1:
        shown.append(picture(run.grids[0][1], "Start", "large"))
    if run.grids:
        step, file = run.grids[-1]
        label = "Student" if run.config.get("teacher") else "Model"
        shown.append(picture(file, f"{label}, step {step:,}", "large"))
    others = list(run.pictures.items())[:SHOWN_PICTURES]
    shown += [picture(file, name.replace("_", " ").capitalize(), "large") for name, file in others]
    return section("samples", "Samples", f'<div class="pair">{"".join(shown)}</div>' if any(shown) else "")


def _history(run: RunData) -> str:
    """Grids of the same seeds through the run, a strip to scroll."""
    count = min(SHOWN_GRIDS, len(run.grids))
    if count < 2:
        return ""
    chosen = [run.grids[round(i * (len(run.grids) - 1) / (count - 1))] for i in range(count)]
    strip = "".join(picture(file, f"Step {step:,}", "small") for step, file in chosen)
    hint = "The same seeds and labels in every grid: only the weights change."
    return f'<p class="hint">{hint}</p><div class="strip">{strip}</div>'


def picture(file: Path, label: str, size: str) -> str:
    shown = opened_picture(file)
    if shown is None:
        return ""
    gray = shown.convert("L")
    if gray.convert("RGB").tobytes() == shown.tobytes():
        shown = gray  # a third of the bytes
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=shown.width * shown.height <= MOST_PIXELS // 4)
    data = base64.b64encode(buffer.getvalue()).decode()
    legible = " legible" if size == "large" and shown.width > SMALL_WORDS else ""
    return (
        f'<figure class="{size}{legible}"><img alt="{escape(label)}" width="{shown.width}" height="{shown.height}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(label)}</figcaption></figure>'
    )


def opened_picture(file: Path) -> Image.Image | None:
    """A PNG or JPEG of at most so many pixels in RGB; None for anything else. Pillow would hand EPS to a program."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("PNG", "JPEG")) as opened:
                return opened.convert("RGB") if opened.width * opened.height <= MOST_PIXELS else None
    except (*UNREADABLE, Image.DecompressionBombError):
        return None


def _health(run: RunData) -> str:
    items = "".join(
        f'<li class="{v.kind}"><i aria-hidden="true">{MARKS[v.kind]}</i>'
        f"<div><b>{escape(v.title)}</b><p>{escape(v.text)}</p></div></li>"
        for v in verdicts(run)
    )
    return f'<ul class="health">{items}</ul>' if items else ""


def _figures(run: RunData) -> str:
    table = metrics_table(run)
    return f"{table}{pairs(protocol(run))}" if table else ""


def pairs(values: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in values.items())
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def _settings(run: RunData) -> str:
    environment = {key.replace("_", " "): str(value) for key, value in run.environment.items() if value is not None}
    config = (
        f'<div class="card"><h3>Config</h3><pre>{escape(run.config_text.strip())}</pre></div>'
        if run.config_text
        else ""
    )
    rest = f'<div class="card"><h3>Environment</h3>{pairs(environment)}</div>' if environment else ""
    return f'<div class="pair">{config}{rest}</div>' if config or rest else ""


def _footer(run: RunData) -> str:
    digest = run.model.get("config_sha256")
    known = f" · config SHA-256 {escape(str(digest)[:12])}" if digest else ""
    return f"<footer>Made by diffdistill {__version__}{known}. FID compares only under one protocol.</footer>"
