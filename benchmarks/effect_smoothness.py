"""What `method.smoothness` does to a one-step student: ISTD, and what it costs in FID and recall.

    python benchmarks/effect_smoothness.py                                       seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_smoothness.py --seeds 0 --teacher-steps 20 --start 10 --steps 10 --images 64     a look

A small teacher of Fashion-MNIST at 8x8 and its one-step students: regression, then DMD2 plain, or with the weights 1
(the paper's) and 10 of the term. ISTD is the package's, of 64 paths of nine images, in pixels and as a part of the
mean step; the teacher's is of DPM-Solver++ with 10 evaluations.
"""

from argparse import Namespace
from collections.abc import Sequence

from small_worlds import Judge, Row, arguments, asked, begun, compared, distilling, matched, pictures
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation.interpolation import istd
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.plan import plan_sampling

WEIGHTS = (None, 1.0, 10.0)
FIGURES = {"istd": "ISTD", "istd_relative": "of the step", "mean_step": "mean step"}


def judged(model: Denoiser, judge: Judge) -> Row:
    plan = plan_sampling(model, asked(model))

    def draw(noise: Tensor, places: Sequence[int]) -> Tensor:
        return sample_batch(model, plan, 0, places, 64, start=noise).clamp(-1, 1)

    found = istd(draw, model.image_shape)
    return {told: float(found[name]) for name, told in FIGURES.items()} | judge.of(judge.drawn(model))


def rows_of(seed: int, options: Namespace, data: ImageSet, judge: Judge) -> dict[str, Row]:
    teacher, start = begun(seed, options.teacher_steps, options.start, data)
    rows = {"teacher": judged(teacher, judge), "regression": judged(start, judge)}
    for weight in WEIGHTS:
        term = None if weight is None else {"weight": weight}
        config = distilling(seed, options.steps, {"name": "dmd2", "adversarial": None, "smoothness": term})
        student = matched(config, teacher, start, data)
        rows["DMD2" if weight is None else f"DMD2, smoothness {weight:g}"] = judged(student, judge)
    return rows


def main() -> None:
    options = arguments(__doc__, teacher_steps=800, start=200, steps=200, images=1000)
    data = pictures()
    judge = Judge(data, options.images, ("fid", "prdc"))
    compared(options, lambda seed: rows_of(seed, options, data, judge), first="DMD2")


if __name__ == "__main__":
    main()
