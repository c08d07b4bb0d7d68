"""`diffdistill calibrate`: measure exposure bias and fit the corrections, sampler by sampler, into one JSON file.

With `--fit signal-leak` it is `signal_leak.py` beside this file.
"""

import statistics
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill import __version__, processes
from diffdistill.data import ImageSet, load_images
from diffdistill.denoiser import Denoiser
from diffdistill.devices import pick_device
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.evaluation.evaluator import Evaluator
from diffdistill.files import replacing
from diffdistill.outputs import check_output
from diffdistill.parts.exposure_bias.calibration.fit import Judge, Trials, calibrate_sampler
from diffdistill.parts.exposure_bias.calibration.measure import (
    Exposure,
    Moments,
    check_fit,
    measure_exposure_bias,
)
from diffdistill.parts.exposure_bias.calibration.signal_leak import fit_signal_leak
from diffdistill.parts.exposure_bias.corrections import (
    BOTH,
    NONE,
    SCALE,
    SHIFT,
    Calibration,
    Corrections,
    Entry,
    calibration_of,
    read_calibration,
)
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.plan import Plan, plan_sampling
from diffdistill.sampling.scheduled import Observe, scheduler_class

NAMES = {"plain": "plain", SCALE: "Epsilon Scaling", SHIFT: "Time-Shift", BOTH: "both"}


@processes.together()
def run(args: Namespace) -> int:
    """Calibrate, write `--out` after every entry and the plot beside it; an unfinished file is continued.

    Several processes sample and look at images in turn; the first one has the file.
    """
    if args.fit == "signal-leak":
        return fit_signal_leak(args)
    out = Path(args.out)
    data = load_images(args.data, split=args.split, keep="auto")
    model = Denoiser.from_pretrained(args.model, pick_device(args.device))
    if model.draws_texts:
        raise ConfigError(
            f"'{args.model}' draws texts, and calibrate compares states with images, not with latents; give the "
            "corrections as numbers: sample --epsilon-scaling B; --fit signal-leak takes it"
        )
    if model.noise.heavy:
        raise ConfigError(
            f"'{args.model}' was trained under Student's t noise (PFGM++), and calibrate compares variances of "
            f"Gaussian noise; give a model of noise.law=gaussian"
        )
    plans = [plan_sampling(model, sampler=name, steps=steps) for name in args.sampler for steps in args.steps]
    for name in args.sampler:
        scheduler_class(name)  # refuses samplers that no correction fits
    processes.lead(lambda: check_fit(model, data))
    moments = Moments.of(data)
    processes.agree({"model": weights_digest(locate(args.model)), "data": data.fingerprint, "flags": vars(args)})
    begun = processes.lead(lambda: asdict(_started(out, args, data, moments)))
    calibration = calibration_of(begun)
    judge, warning = _judge(args, data, model)
    for plan in plans:
        if any((entry.sampler, entry.steps) == (plan.sampler, plan.steps) for entry in calibration.entries):
            continue
        entry = calibrate_plan(model, plan, moments, judge, args)
        calibration = replace(calibration, entries=(*calibration.entries, entry))
        processes.lead(partial(calibration.save, out))
        print(_line(entry), flush=True)
    if warning is not None:
        print(f"note: {warning}")
    print(f"{out}: {len(calibration.entries)} fits")
    processes.lead(lambda: _plotted(calibration, out.with_suffix(".png")))
    return 0


def _plotted(calibration: Calibration, file: Path) -> None:
    try:
        plot_calibration(calibration, file)
        print(f"{file}: bias along the path, quality against b")
    except ConfigError as error:  # no matplotlib: the fits are there all the same
        print(f"no plot: {error}")


def calibrate_plan(model: Denoiser, plan: Plan, moments: Moments, judge: Judge, args: Namespace) -> Entry:
    """The entry of one sampler and number of steps, and its check on other seeds."""
    measure = partial(measure_plan, model, plan, moments, num_images=args.num_images, batch_size=args.batch_size)
    trials = Trials(partial(measure, seed=args.seed), judge, {})
    entry = calibrate_sampler(plan.sampler, plan.steps, trials, moments.statistics, args.method)
    if args.check_seeds:
        chosen = {"plain": NONE} | {name: Corrections(**entry.fits[name]) for name in (SCALE, SHIFT, BOTH)}
        entry.report["check"] = _check(chosen, measure, judge, args.check_seeds, args.seed + 1)
    return entry


def measure_plan(
    model: Denoiser,
    plan: Plan,
    moments: Moments,
    corrections: Corrections,
    *,
    seed: int,
    num_images: int,
    batch_size: int,
) -> Exposure:
    """Exposure of a plan with corrections; being watched, it is computed by a scheduler even where there are none."""
    corrected = replace(plan, corrections=corrections)

    def sample(indices: Sequence[int], observe: Observe) -> Tensor:
        return sample_batch(model, corrected, seed, indices, batch_size, observe)

    return measure_exposure_bias(sample, moments, num_images=num_images, batch_size=batch_size)


def _started(out: Path, args: Namespace, data: ImageSet, moments: Moments) -> Calibration:
    """The file so far, if it answers the same request; else an empty calibration. Nothing else is overwritten."""
    settings = {key: getattr(args, key) for key in ("num_images", "seed", "method", "metric", "features")}
    fresh = Calibration(
        args.model,
        weights_digest(locate(args.model)),
        {"name": data.name, "split": args.split, "fingerprint": data.fingerprint, "num_images": len(data)},
        moments.statistics["corrected"],
        {**settings, "check_seeds": args.check_seeds, "guidance_scale": 1.0, "diffdistill": __version__},
        (),
    )
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    plot = out.with_suffix(".png")
    if plot == out:
        raise ConfigError(f"--out {out} is JSON, and its plot is called so; name it {out.with_suffix('.json')}")
    if not out.exists():
        check_output(plot, "the plot of --out,")  # only that of an unfinished calibration is drawn again
        return fresh
    try:
        calibration = read_calibration(out)
    except CheckpointError:
        calibration = None
    if calibration is None or replace(calibration, entries=(), model=fresh.model) != fresh:
        raise ConfigError(f"--out {out} exists and holds something else: delete it or name another file")
    return calibration


def _judge(args: Namespace, data: ImageSet, model: Denoiser) -> tuple[Judge, str | None]:
    """Quality of the images of a run, lower is better, and a warning about the features where there is one."""
    device = next(model.parameters()).device
    evaluator = Evaluator(data, args.features, (args.metric,), device=device, floor=False, resamples=0)

    def judge(exposure: Exposure) -> float:
        return float(evaluator(exposure.images)["metrics"][args.metric]["value"])

    return judge, "; ".join(evaluator.warnings) or None


def _check(chosen: dict[str, Corrections], measure: Any, judge: Judge, count: int, first: int) -> dict[str, Any]:
    """Quality of each choice on seeds that no fit has seen: mean and sample standard deviation."""
    qualities: dict[Corrections, list[float]] = {}
    for corrections in dict.fromkeys(chosen.values()):
        qualities[corrections] = [judge(measure(corrections, seed=first + i)) for i in range(count)]
    return {name: _spread(qualities[corrections]) for name, corrections in chosen.items()}


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.mean(values), "deviation": deviation}


def _line(entry: Entry) -> str:
    """One line a fit: bias before, what was chosen, quality before and after."""
    final = {name: report["log_ratio"][-1] for name, report in entry.report["exposure"].items()}
    scale, shift, both = (entry.fits[name] for name in (SCALE, SHIFT, BOTH))
    parts = [f"{entry.sampler} {entry.steps}: ln(variance ratio) {final['plain']:+.4f}, b {scale['b']:g}"]
    if "variance_fit" in entry.report:
        fit = entry.report["variance_fit"]
        parts.append(f"(variance matched at {fit['b']:.4f} +- {fit['standard_error']:.4f})")
    parts.append(f"-> {final[SCALE]:+.4f}; window {shift['window']:g} {shift['statistic']} -> {final[SHIFT]:+.4f}")
    parts.append(f"; both: b {both['b']:g}, window {both['window']:g}")
    for name, result in entry.report.get("check", {}).items():
        spread = "" if result["deviation"] is None else f" +- {result['deviation']:.2f}"
        parts.append(f"; {name} {result['mean']:.2f}{spread}")
    return " ".join(parts).replace(" ;", ";")


# ---- the plot


def plot_calibration(calibration: Calibration, target: Path) -> None:
    """A row an entry: r at every level (left), quality against b (right). ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'diffdistill[plot]'") from error
    rows = len(calibration.entries)
    figure = Figure(figsize=(10, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for (left, right), entry in zip(axes, calibration.entries, strict=True):
        _path(left, entry)
        _quality(right, entry, calibration.settings["metric"].upper())
    with replacing(target) as partial:
        figure.savefig(partial, dpi=120)


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
