"""What scheduled sampling does to the exposure bias and the FID of a small teacher of Fashion-MNIST at 8x8.

    python benchmarks/effect_scheduled_sampling.py                           seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_scheduled_sampling.py --seeds 0 --steps 20 --images 64         a look

Teachers of equal updates: plain; with the part that the default rule has in so short a run (8 %); with a half from the
start (mu = 1), its estimates at the next higher of 10 Karras levels, as few as are sampled with, in place of 35. Bias
is what `calibrate` measures of the Euler sampler: r = ln(variance of a state / of training there), of the images and
as mean |r| over all states; FID is of the same images.
"""

from argparse import Namespace
from typing import Any

from small_worlds import Judge, Row, arguments, compared, device, pictures, settings, trained

from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.parts.exposure_bias.calibration.command import measure_plan
from diffdistill.parts.exposure_bias.calibration.measure import Moments
from diffdistill.parts.exposure_bias.corrections import NONE
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.tasks.scheduled import ScheduledTask
from diffdistill.training.tasks.teacher import TeacherTask

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"name": "denoising"},
    "8 %": {"name": "scheduled_sampling"},
    "half": {"name": "scheduled_sampling", "mu": 1.0, "steps": 10},
}


def judged(model: Denoiser, moments: Moments, judge: Judge) -> Row:
    row: Row = {}
    for steps in (5, 10):
        plan = plan_sampling(model, sampler="euler", steps=steps)
        found = measure_plan(model, plan, moments, NONE, seed=1000, num_images=judge.images, batch_size=64)
        row |= {f"r {steps}": found.final, f"|r| {steps}": float(found.log_ratio.abs().mean())}
        row[f"FID {steps}"] = judge.of(found.images)["FID"]
    return row


def rows_of(seed: int, options: Namespace, data: ImageSet, moments: Moments, judge: Judge) -> dict[str, Row]:
    rows = {}
    for name, objective in ARMS.items():
        task = TeacherTask if objective["name"] == "denoising" else ScheduledTask
        model = trained(task(settings(seed, options.steps, objective=objective), data, device()))
        rows[name] = judged(model, moments, judge)
    return rows


def main() -> None:
    options = arguments(__doc__, steps=500, images=500)
    data = pictures()
    moments, judge = Moments.of(data), Judge(data, options.images)
    compared(options, lambda seed: rows_of(seed, options, data, moments, judge), first="plain")


if __name__ == "__main__":
    main()
