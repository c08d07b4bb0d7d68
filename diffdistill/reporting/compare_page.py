"""A comparison of runs for readers: a table in a terminal, a page of HTML, and `diffdistill compare`."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean

from diffdistill import __version__
from diffdistill.errors import ConfigError
from diffdistill.evaluation.figures import figure_of
from diffdistill.evaluation.table import grid
from diffdistill.files import not_written, read_json, write_json, write_text
from diffdistill.outputs import check_output, has_keys, is_stdout, write_answer
from diffdistill.reporting.charts import CATALOGUE, WAYS, Chart, card, duration, of_evaluations
from diffdistill.reporting.compare import Comparison, Group, Spread, as_json, compared
from diffdistill.reporting.line_chart import Line, line_chart, short
from diffdistill.reporting.page import document, pairs, picture, section
from diffdistill.reporting.report import may_replace
from diffdistill.reporting.rundata import RunData, Series
from diffdistill.reporting.tables import number

PAGE, DATA = "index.html", "compare.json"
COLOURS = 6
MOST_CURVES, MOST_GRIDS = 24, 24
BESIDE, BELOW = 4, 16  # settings that differ: as columns of the table at most, as lines below it at most


def write_comparison(folders: Sequence[str | Path], out: str | Path, mixed: bool = False) -> Path:
    """`index.html` and `compare.json` in the folder `out`, in place of those of these runs; returns the page.

    Raises the errors of `compared`, ConfigError for other files of these names and for other runs', DiskError.
    """
    comparison, folder = compared(folders, mixed), Path(out)
    check_place(folders, folder)
    page, data = folder / PAGE, folder / DATA
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(data, as_json(comparison))
        write_text(page, html(comparison))
    except OSError as error:
        raise not_written(folder, error, "free space or choose another folder") from error
    return page


def check_place(folders: Sequence[str | Path], folder: Path) -> None:
    """ConfigError where `write_comparison` of these runs would lose what is there: more runs may come to the same."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out '{folder}' is a file; name a folder")
    page, data = folder / PAGE, folder / DATA
    earlier = _runs_of(data)
    if page.is_dir() or not may_replace(page) or earlier is None:
        raise ConfigError(f"--out '{folder}' holds files that are no comparison; name another folder")
    if not earlier <= {Path(run).resolve() for run in folders}:
        raise ConfigError(f"--out '{folder}' holds a comparison of other runs; name another folder")


def _runs_of(file: Path) -> set[Path] | None:
    """The runs of an earlier comparison; None of a file that is none."""
    try:
        known = read_json(file)["groups"] if file.exists() else []
        return {Path(run).resolve() for group in known for run in group["runs"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def words(spread: Spread | None) -> str:
    """The mean, and how far seeds scatter around it, `1.80 ± 0.05`; of one seed its standard error."""
    if spread is None:
        return "–"
    return number(spread.mean) + ("" if spread.more is None else f" ± {number(spread.more)}")


def text(comparison: Comparison) -> str:
    """A line a group, for a terminal; where many settings differ, as of two recipes, they are a table below."""
    figures = comparison.figures
    beside = comparison.settings if len(comparison.settings) <= BESIDE else []
    header = ["run", "seeds", *beside, *map(comparison.label, figures), "training"]
    rows = [
        [
            group.name,
            str(len(group.runs)),
            *(group.settings.get(key, "-") for key in beside),
            *(words(group.figures.get(name)) for name in figures),
            duration(group.seconds.mean),
        ]
        for group in comparison.groups
    ]
    notes = [f"note: {name} was measured otherwise: {what}" for name, what in comparison.odd.items()]
    return "\n".join([grid(header, rows), *notes, *([] if beside else _below(comparison))])


def _below(comparison: Comparison) -> list[str]:
    """The settings that differ, a line each, the first of them."""
    keys = comparison.settings[:BELOW]
    if not keys:
        return []
    rows = [[key, *(group.settings.get(key, "-") for group in comparison.groups)] for key in keys]
    left = len(comparison.settings) - len(keys)
    more = [f"{left} more settings differ; --out or --json has them all"] if left else []
    return ["", grid(["setting", *(group.name for group in comparison.groups)], rows), *more]


def html(comparison: Comparison) -> str:
    """The whole page, in the style of the reports; needs no other file and no network."""
    count, groups = len(comparison.runs), comparison.groups
    title = " and ".join(group.name for group in groups) if len(groups) < 4 else f"{count} runs"
    lead = f"{count} runs beside each other; ± is the standard deviation over training seeds where there are several, "
    lead += "else the standard error of the one figure."
    head = (
        f'<header><p class="kicker">diffdistill compare</p><h1>{escape(title)}</h1><p class="lead">{lead}</p></header>'
    )
    curves = charts(comparison)
    settings = section("settings", "Settings that differ", _settings(comparison))
    few = len(comparison.settings) <= BELOW  # else they would hide what was made
    sections = [
        head,
        section("figures", "Figures", _table(comparison) + _notes(comparison)),
        settings if few else "",
        section("samples", "Samples of the same seeds", _grids(comparison)),
        section("curves", "Curves", f'<div class="grid">{"".join(curves)}</div>' if curves else ""),
        "" if few else settings,
        f"<footer>Made by diffdistill {__version__}. FID compares only under one protocol.</footer>",
    ]
    return document(title, "".join(sections))


def _key(index: int) -> str:
    return f'<i class="c{1 + index % COLOURS}"></i>'


def _table(comparison: Comparison) -> str:
    """A row a group, a column a figure; the best of each column is bold."""
    figures = comparison.figures
    columns = {name: [group.figures.get(name) for group in comparison.groups] for name in figures}
    heads = [
        f"<th>{escape(comparison.label(name))}<small>{WAYS[figure_of(name).lower_is_better]}</small></th>"
        for name in figures
    ]
    rows = []
    comparable = [not any(run.folder.name in comparison.odd for run in group.runs) for group in comparison.groups]
    tops = {name: best(name, [one if fit else None for one, fit in zip(columns[name], comparable, strict=True)])
            for name in figures}  # fmt: skip
    for index, group in enumerate(comparison.groups):
        cells = [_cell(columns[name][index], index in tops[name]) for name in figures]
        seeds = "" if len(group.runs) == 1 else f"<small>seeds {escape(', '.join(group.seeds))}</small>"
        mark = "" if comparable[index] else " ‡"
        name = f'<span class="key">{_key(index)}{escape(group.name)}{mark}</span>{seeds}'
        steps = f"{max(run.steps for run in group.runs):,} steps"
        time = f"<td>{duration(group.seconds.mean)}<small>{steps}</small></td>"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}{time}</tr>')
    head = f"<tr><th></th>{''.join(heads)}<th>Training</th></tr>"
    many = " many" if len(figures) > 4 else ""
    table = f'<table class="figures{many}"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def best(name: str, spreads: Sequence[Spread | None]) -> set[int]:
    """Which of a column are best, with those that are no further from it than its own ±; none where all are, or
    nothing says which way.
    """
    lower = figure_of(name).lower_is_better
    known = {index: one for index, one in enumerate(spreads) if one is not None}
    if lower is None or not known:
        return set()
    top = (min if lower else max)(known.values(), key=lambda one: one.mean)
    found = {
        index
        for index, one in known.items()
        if abs(one.mean - top.mean) <= (top.more or 0) or number(one.mean) == number(top.mean)
    }
    return found if len(found) < len(known) else set()


def _cell(spread: Spread | None, bold: bool) -> str:
    if spread is None:
        return "<td>–</td>"
    value = f"<b>{number(spread.mean)}</b>" if bold else number(spread.mean)
    error = "" if spread.more is None else f'<span class="quiet"> ± {number(spread.more)}</span>'
    return f"<td>{value}{error}</td>"


def _notes(comparison: Comparison) -> str:
    """The protocol, and which runs were measured by another: their figures are marked."""
    odd = {f"‡ {name}": f"measured otherwise, does not compare: {what}" for name, what in comparison.odd.items()}
    return pairs(comparison.protocol | odd)


def _settings(comparison: Comparison) -> str:
    if not comparison.settings:
        return '<p class="hint">None but the seed.</p>'
    heads = "".join(
        f'<th><span class="key">{_key(index)}{escape(group.name)}</span></th>'
        for index, group in enumerate(comparison.groups)
    )
    rows = "".join(
        f'<tr><th scope="row"><code>{_breakable(key)}</code></th>'
        + "".join(f"<td>{escape(group.settings.get(key, '-'))}</td>" for group in comparison.groups)
        + "</tr>"
        for key in comparison.settings
    )
    table = f'<table class="figures"><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _breakable(key: str) -> str:
    """A dotted key that may be broken after its dots and underscores, and nowhere else."""
    return escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _grids(comparison: Comparison) -> str:
    """The last grid of the first run of each group, after the teacher's; the same seeds in all of them."""
    shown = []
    teacher = next((run.pictures["teacher"] for run in comparison.runs if "teacher" in run.pictures), None)
    if teacher is not None:
        shown.append(picture(teacher, "Teacher", "large"))
    for group in comparison.groups[:MOST_GRIDS]:
        if group.runs[0].grids:
            step, file = group.runs[0].grids[-1]
            shown.append(picture(file, f"{group.name}, step {step:,}", "large"))
    return f'<div class="pair">{"".join(shown)}</div>' if any(shown) else ""


def charts(comparison: Comparison) -> list[str]:
    """A chart of every figure that two runs or more have, a line a run, a colour a group."""
    runs = [(index, group, run) for index, group in enumerate(comparison.groups) for run in group.runs]
    left = list(dict.fromkeys(name for _, _, run in runs for name in run.metrics))
    left = [name for name in left if sum(len(run.metrics.get(name, ())) > 1 for *_, run in runs) > 1]
    figures: list[str] = []
    for chart in [*of_evaluations(runs[0][2]), *CATALOGUE]:
        if chart.ordered:  # bins of the level: a chart for each would hide the rest
            continue
        names = [name for name in left if chart.takes(name)]
        left = [name for name in left if name not in names]
        figures += [_chart(comparison, chart, name, runs) for name in names]
    return figures[:MOST_CURVES]


def _chart(comparison: Comparison, chart: Chart, name: str, runs: Sequence[tuple[int, Group, RunData]]) -> str:
    """A line a run; in the legend a group with the mean of its runs' last values."""
    known = [(index, run, series) for index, _, run in runs if len(series := run.metrics.get(name, Series())) > 1]
    lines = [
        Line(run.folder.name, series.steps, series.values, f"c{1 + index % COLOURS}") for index, run, series in known
    ]
    title = _title(comparison, chart, name)
    values = [value for line in lines for value in line.ys]
    drawing = line_chart(
        lines,
        name=f"{title} against the training step",
        log=chart.log and min(values) > 0 and max(values) / min(values) > 5,
        percent=chart.percent,
        smooth=chart.smooth,
        reference=chart.reference,
    )
    ends = {i: [s.values[-1] for index, _, s in known if index == i] for i in dict.fromkeys(i for i, *_ in known)}
    keys = [Line(comparison.groups[i].name, (), (), f"c{1 + i % COLOURS}") for i in ends]
    last = [f" <b>{short(float(f'{fmean(some):.3g}'))}</b>" for some in ends.values()]
    return card(title, chart.hint.replace("; below, the time", ""), drawing, keys, last, many=False)


def _title(comparison: Comparison, chart: Chart, name: str) -> str:
    """The figure itself, where the chart is of several."""
    figure = name.removeprefix("evaluation/")
    if figure != name:
        return comparison.label(figure) if figure in comparison.figures else figure_of(figure).label
    plain = len(chart.patterns) == 1 and not any(letter in chart.patterns[0] for letter in "*?[")
    head, _, tail = name.partition("/")
    part = tail if name not in chart.patterns and f"{head}/*" in chart.patterns else head
    return chart.title if plain else f"{chart.title}: {part.replace('_', ' ')}"


def run(args: Namespace) -> int:
    """Print the table; write the page where one is asked for."""
    if args.json is not None:
        check_output(args.json, "--json", has_keys("groups"))
    if args.out is not None:
        check_place(args.runs, Path(args.out))
    comparison = compared(args.runs, args.mixed)
    if not is_stdout(args.json):
        print(text(comparison))
    if args.json is not None:
        write_answer(args.json, as_json(comparison))
    if args.out is not None:
        page = write_comparison(args.runs, args.out, args.mixed)
        print(page, file=sys.stderr if is_stdout(args.json) else sys.stdout)
    return 0
