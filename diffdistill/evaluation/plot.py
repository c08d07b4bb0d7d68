"""FID against the number of network evaluations: a teacher's curve, its students' points."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import features_of, label_of
from diffdistill.files import replacing

ENDINGS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def check_plot(path: str | Path) -> None:
    """ConfigError where no plot could be drawn into the file: for want of matplotlib, or by its name."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ConfigError(f"'{path}' is no name of a picture; end it in {', '.join(ENDINGS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'diffdistill[plot]'") from error


def plot_evaluations(results: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw the FID of evaluated models (results with `subject`) into a PNG, SVG or PDF; needs matplotlib."""
    check_plot(path)
    from matplotlib.figure import Figure

    lines: dict[tuple[str, str], list[tuple[int, float, float]]] = defaultdict(list)
    for result in results:
        about, entry = result["subject"], result["metrics"]["fid"]
        point = (about["evaluations"], entry["value"], 1.96 * (entry["standard_error"] or 0.0))
        lines[about["model"], about["sampler"]].append(point)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for (model, sampler), points in lines.items():
        x, y, spread = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, yerr=spread, marker="o", capsize=3, label=f"{model} ({sampler})")
    floor = results[0]["metrics"]["fid"].get("floor")
    if floor:
        axes.axhline(floor["value"], color="gray", linestyle=":", label=f"real vs real, N = {floor['n']:,}")
    axes.set(
        xscale="log",
        xlabel="network evaluations per image",
        ylabel=label_of("fid", features_of(results[0])),
        ylim=(0, None),
    )
    counts = sorted({result["subject"]["evaluations"] for result in results})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    axes.legend()
    with replacing(Path(path)) as partial:
        figure.savefig(partial, dpi=150, format=Path(path).suffix[1:].lower())
