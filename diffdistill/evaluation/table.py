"""Results as text: the protocol first, then the numbers."""

from collections.abc import Sequence
from html import escape
from typing import Any

from diffdistill.evaluation.figures import features_of, label_of, values_of
from diffdistill.showing import table


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def rows_of(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(metric, value ± standard error, N, the same between real images) of one result."""
    features = features_of(result)
    rows = []
    for name, value in values_of(result).items():
        error = "" if value.error is None else f" ± {value.error:.2g}"
        real = "" if value.real is None else _number(value.real)
        if real and value.real_n not in (None, value.n):
            real += f" (N = {value.real_n:,})"
        label = label_of(name, features, result.get("figures"))
        rows.append((label, _number(value.value) + error, f"{value.n:,}", real))
    return rows


def protocol_lines(result: dict[str, Any]) -> list[str]:
    """Everything that a reader needs to compare the numbers with others."""
    protocol = result["protocol"]
    if "reference" not in protocol:
        return _text_lines(protocol)
    reference, features = protocol["reference"], protocol.get("features")
    n = f", {reference['num_images']:,} images" if reference["num_images"] else ""
    mark = f", fingerprint {reference['fingerprint'][:12]}" if reference["fingerprint"] else " (statistics only)"
    name = f"reference  {reference['name']}{n}{mark}"
    if features is None:  # scores of single images look at none
        return [name, *_text_lines(protocol)]
    return [
        name,
        f"features   {features['id']}, {features['dim']} a picture, SHA-256 {features['sha256'][:12]}",
        f"resize     {protocol['resize']} (reference {reference['resize'] or 'unknown'})",
        f"backend    {protocol['backend']}, seed {protocol['seed']}",
        *_text_lines(protocol),
    ]


def _text_lines(protocol: dict[str, Any]) -> list[str]:
    """What images were compared with, and by which networks, where there were texts."""
    texts, clip, lines = protocol.get("texts"), protocol.get("clip_model"), []
    if texts:
        lines.append(f"texts      {texts['count']:,}, SHA-256 {texts['sha256'][:12]}")
    if clip:
        lines.append(f"CLIP       {clip['id']}, SHA-256 {clip['sha256'][:12]}")
    for name, version in (protocol.get("rewards") or {}).items():
        lines.append(f"reward     {name.removeprefix('reward/')}: {version or 'the version is not known'}")
    return lines


def subject_line(result: dict[str, Any]) -> str:
    about = result["subject"]
    if "images" in about:
        of = f" of {about['of']:,}, at random" if "of" in about else ""
        return f"images     {about['images']}, {result['protocol']['num_images']:,} images{of}"
    calls = f"{about['evaluations']} evaluation" + ("s" if about["evaluations"] != 1 else "")
    scale = about.get("guidance_scale") or 1
    guided = "" if scale == 1 else f", guidance {scale:g}"
    guided += ", signal leak" if about.get("signal_leak") else ""
    return (
        f"model      {about['model']}, {result['protocol']['num_images']:,} images, {about['sampler']}, "
        f"{calls}{guided}, {about.get('dtype', 'float32')}, seed {about['seed']}"
    )


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their contents, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Evaluation(dict[str, Any]):
    """The answer of `evaluate`: a plain dict, which says itself as its table, protocol first."""

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.get("models", [self])

    def __repr__(self) -> str:
        if not all({"metrics", "protocol", "subject"} <= result.keys() for result in self.results):
            return super().__repr__()
        return one(self) if "models" not in self else comparison(self.results)

    def _repr_html_(self) -> str:
        """The table of each model; how it was measured below."""
        if not all({"metrics", "protocol", "subject"} <= result.keys() for result in self.results):
            return f"<pre>{escape(super().__repr__())}</pre>"
        lines = [*map(subject_line, self.results), *protocol_lines(self.results[0])]
        tables = [table(rows_of(result), ("metric", "value", "N", "real vs real")) for result in self.results]
        return f"{''.join(tables)}<pre>{escape(chr(10).join(lines))}</pre>"


def one(result: dict[str, Any]) -> str:
    """The report of one subject."""
    rows = rows_of(result)
    columns = 4 if any(real for *_, real in rows) else 3
    written = grid(("metric", "value", "N", "real vs real")[:columns], [row[:columns] for row in rows])
    return "\n".join([subject_line(result), *protocol_lines(result), "", written])


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """A line a model, under one protocol; the last line is real images against real images."""
    columns = [name for name, *_ in rows_of(results[0])]
    header = ["model", "sampler", "evaluations", *columns]
    lines = []
    for result in results:
        about = result["subject"]
        values = [value for _, value, *_ in rows_of(result)]
        lines.append([about["model"], about["sampler"], str(about["evaluations"]), *values])
    real = [floor for *_, floor in rows_of(results[0])]
    if any(real):
        lines.append(["real images", "", "", *real])
    images = f"images     {results[0]['protocol']['num_images']:,} of each model, seed {results[0]['subject']['seed']}"
    return "\n".join([images, *protocol_lines(results[0]), "", grid(header, lines)])
