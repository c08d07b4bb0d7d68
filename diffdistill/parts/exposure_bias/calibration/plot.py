"""Picture of a calibration: the bias along the path, before and after, and the quality against b."""

from pathlib import Path
from typing import Any

from diffdistill.errors import ConfigError
from diffdistill.parts.exposure_bias.calibration.record import BOTH, SCALE, SHIFT, Calibration, Entry

NAMES = {"plain": "plain", SCALE: "Epsilon Scaling", SHIFT: "Time-Shift", BOTH: "both"}


def plot_calibration(held: Calibration, target: Path) -> None:
    """A row an entry: r at every level (left), quality against b (right). ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'diffdistill[plot]'") from error
    rows = len(held.entries)
    figure = Figure(figsize=(10, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for (left, right), entry in zip(axes, held.entries, strict=True):
        _path(left, entry)
        _quality(right, entry, held.settings["metric"].upper())
    figure.savefig(target, dpi=120)


def _path(axis: Any, entry: Entry) -> None:
    for name, report in entry.report["exposure"].items():
        # The last level is 0, which a logarithmic axis lacks: it is drawn a step to the right of the others.
        levels = [level or report["levels"][-2] / 3 for level in report["levels"]]
        axis.errorbar(levels, report["log_ratio"], report["standard_error"], label=NAMES[name], marker=".", capsize=2)
    axis.set(xscale="log", title=f"{entry.sampler}, {entry.steps} steps", ylabel="ln(variance / training variance)")
    axis.set_xlabel("noise level (last point: the images)")
    axis.invert_xaxis()
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.legend(fontsize=8)


def _quality(axis: Any, entry: Entry, metric: str) -> None:
    for shifted, label in ((False, "no shift"), (True, "shifted")):
        tried = sorted((t["b"], t["quality"]) for t in entry.report["trials"] if bool(t["window"]) is shifted)
        if tried:
            axis.plot(*zip(*tried, strict=True), marker="o", label=label)
    axis.axvline(entry.fits[SCALE]["b"], color="gray", linewidth=0.8)
    axis.set(xlabel="b", ylabel=metric, title="trials; the line is the choice")
    axis.legend(fontsize=8)
