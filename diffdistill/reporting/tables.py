"""The figures of a run: headline numbers, and the metrics of every model with their protocol."""

from html import escape
from typing import Any

from diffdistill.evaluation.figures import Value, features_of, figure_of, label_of, values_of
from diffdistill.reporting.charts import WAYS, duration
from diffdistill.reporting.line_chart import short
from diffdistill.reporting.rundata import RunData


def evaluations(run: RunData, name: str) -> int | None:
    """Calls of the network an image of this model takes, where it is known."""
    result = run.evaluation.get(name, {})
    known = (result.get("sampling") or result.get("subject") or {}).get("evaluations")
    if known is None and name == "student":
        return len(run.model.get("levels", ())) or None
    return known


def headline(run: RunData) -> list[tuple[str, str, str]]:
    """The numbers a reader wants first: (label, value, what it rests on)."""
    tiles = []
    values = {name: values_of(result) for name, result in run.evaluation.items()}
    fid = label_of("fid", run.features)
    for name in ("student", "teacher", "model"):
        if "fid" in values.get(name, {}):
            calls = evaluations(run, name)
            rest = "" if calls is None else f"{calls} evaluation{'' if calls == 1 else 's'} an image"
            own = label_of("fid", features_of(run.evaluation[name]))
            tiles.append((f"{name.capitalize()} {own}", f"{values[name]['fid'].value:.2f}", rest))
    student, teacher = (values.get(name, {}).get("fid") for name in ("student", "teacher"))
    if student and teacher and teacher.value > 0:
        tiles.append(
            ("Student / teacher", f"{student.value / teacher.value:.2f}×", f"of their {fid}, lower is better")
        )
    floor = next((v["fid"].real for v in values.values() if "fid" in v and v["fid"].real is not None), None)
    if floor is not None:
        tiles.append(("Real images", f"{floor:.2f}", f"{fid} of real against real, the floor"))
    tiles += _clip_tiles(values) + _win_tiles(values.get("aligned", {}))
    if run.steps:
        batch, what = run.config.get("train_batch_size"), "pairs" if run.verb == "align" else "images"
        size = f" of {batch} {what}" if batch else ""
        tiles.append(("Training", duration(run.seconds), f"{run.steps:,} steps{size}"))
    return tiles


def _clip_tiles(values: dict[str, dict[str, Value]]) -> list[tuple[str, str, str]]:
    """The CLIP score of what was trained, beside that of the teacher, or of real images with their captions."""
    tiles = []
    for name in ("student", "model"):
        score, teacher = (values.get(model, {}).get("clip") for model in (name, "teacher"))
        if score is None:
            continue
        beside = "" if score.real is None else f"{score.real:.2f} of real images and their captions"
        beside = beside if teacher is None else f"{teacher.value:.2f} of the teacher"
        tiles.append((f"{name.capitalize()} CLIP score", f"{score.value:.2f}", beside))
    return tiles


def _win_tiles(values: dict[str, Value]) -> list[tuple[str, str, str]]:
    """Win rates of an aligning run: of held-out pairs, and of images by each judge."""
    words = {"win_rate_over_start": "held-out pairs whose margin rose"}
    words |= {name: "images preferred to the start's" for name in values if name.startswith("judge_win_rate/")}
    return [
        (label_of(name), f"{100 * values[name].value:.0f}%", rest) for name, rest in words.items() if name in values
    ]


def metrics_table(run: RunData) -> str:
    """One row a metric, one column a model, with standard errors and the floor between real images; "" without any."""
    columns = {name: values for name, result in run.evaluation.items() if (values := values_of(result))}
    if not columns:
        return ""
    rows = dict.fromkeys(metric for values in columns.values() for metric in values)
    head = "".join(f"<th>{escape(name.replace('_', ' ').capitalize())}{_calls(run, name)}</th>" for name in columns)
    floors = any(value.real is not None for values in columns.values() for value in values.values())
    body = []
    for metric in rows:
        figure = figure_of(metric, run.words)
        features = next(features_of(run.evaluation[name]) for name, values in columns.items() if metric in values)
        label = label_of(metric, features, run.words)
        cells = "".join(f"<td>{_cell(values.get(metric))}</td>" for values in columns.values())
        real = [values[metric].real for values in columns.values() if metric in values]
        floor = next((number(f) for f in real if f is not None), "–")
        last = f'<td class="quiet">{floor}</td>' if floors else ""
        way = WAYS[figure.lower_is_better]
        body.append(f'<tr><th scope="row">{escape(label)}<small>{way}</small></th>{cells}{last}</tr>')
    head = f"<tr><th></th>{head}{'<th>Real vs real<small>the floor</small></th>' if floors else ''}</tr>"
    return (
        f'<div class="wide"><table class="figures"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _calls(run: RunData, name: str) -> str:
    calls = evaluations(run, name)
    return "" if calls is None else f"<small>{escape(str(calls))} evaluation{'' if calls == 1 else 's'}</small>"


def _cell(value: Value | None) -> str:
    if value is None:
        return "–"
    error = "" if value.error is None else f'<span class="quiet"> ± {number(value.error)}</span>'
    return f"{number(value.value)}{error}"


def number(value: float) -> str:
    """Two decimals, or three digits of what is smaller than 0.1."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else short(float(f"{value:.2g}"))


def protocol(run: RunData) -> dict[str, str]:
    """How the figures were measured, in words; of the first evaluation, with a note if another differs."""
    results = [(name, result["protocol"]) for name, result in run.evaluation.items() if result.get("protocol")]
    if not results:
        return {}
    name, first = results[0]
    words = protocol_words(first)
    others = [other for other, protocol in results[1:] if protocol_words(protocol) != words]
    if others:
        words["Note"] = (
            f"{', '.join(others)} was measured otherwise: the figures do not compare; this is that of {name}"
        )
    warnings = [warning for result in run.evaluation.values() for warning in result.get("warnings", ())]
    if warnings:
        words["Warnings"] = "; ".join(dict.fromkeys(warnings))
    return words


def protocol_words(protocol: dict[str, Any]) -> dict[str, str]:
    features, reference = protocol.get("features") or {}, protocol.get("reference") or {}
    texts, clip = protocol.get("texts") or {}, protocol.get("clip_model") or {}
    words = {
        "Generated images": _count(protocol.get("num_images")),
        "Features": _joined(features.get("id"), _width(features.get("dim")), _hash(features.get("sha256"))),
        "Reference": _joined(
            reference.get("name"), _count(reference.get("num_images"), " images"), _hash(reference.get("fingerprint"))
        ),
        "Held-out pairs": _count(protocol.get("num_pairs")),
        "Times of each": _count(protocol.get("levels")),
        "Judged images": _count(protocol.get("judged_images")),
        "Precision": protocol.get("dtype"),
        "Resize": protocol.get("resize"),
        "Texts": _joined(_count(texts.get("count")), _hash(texts.get("sha256"))),
        "CLIP": _joined(clip.get("id"), _hash(clip.get("sha256"))),
        "Rewards": _joined(*(protocol.get("rewards") or {}).values()),
        "Backend": protocol.get("backend"),
        "Seed": None if protocol.get("seed") is None else str(protocol["seed"]),
    }
    return {key: value for key, value in words.items() if value}


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _count(number: int | None, unit: str = "") -> str | None:
    return None if number is None else f"{number:,}{unit}"


def _width(number: int | None) -> str | None:
    return None if number is None else f"{number} dimensions"


def _hash(digest: str | None) -> str | None:
    return None if digest is None else f"SHA-256 {digest[:12]}"
