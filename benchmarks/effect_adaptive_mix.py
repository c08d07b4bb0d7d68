"""What AdaptiveMix (`method.adversarial.mix`) does to DMD2's discriminator and to the one-step student.

    python benchmarks/effect_adaptive_mix.py                                     seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_adaptive_mix.py --seeds 0 --teacher-steps 20 --start 10 --steps 10 --images 64   a look

A small teacher of Fashion-MNIST at 8x8 and its one-step students: regression, then DMD2 with a head on the teacher's
last block (a map of 8x8, for a head on 4x4 has no layer to move), or on the critic's middle, as in DMD2's paper; each
without the term and with its weight 1. Accuracy is the discriminator's own on its batches, over the last quarter of
the updates: a half is a coin.
"""

import statistics
from argparse import Namespace
from typing import Any

from small_worlds import Judge, Row, arguments, begun, compared, distilling, matched, pictures

from diffdistill.data import ImageSet
from diffdistill.matching.micro_batches import Metrics

WEIGHT = 6e-2  # of the adversarial term: its gradient is then some fifth of the matching's
PLACES: dict[str, dict[str, Any]] = {
    "teacher": {"features": "teacher", "taps": ("up_blocks.1",)},
    "critic": {"features": "critic", "taps": ("mid_block",)},
}
WATCHED = {"discriminator/accuracy": "accuracy", "discriminator/loss": "loss", "discriminator/mix": "mix"}


def rows_of(seed: int, options: Namespace, data: ImageSet, judge: Judge) -> dict[str, Row]:
    teacher, start = begun(seed, options.teacher_steps, options.start, data)
    rows = {"regression": judge.of(judge.drawn(start))}
    for place, said in PLACES.items():
        for mix in (0.0, 1.0):
            late: list[Metrics] = []

            def seen(step: int, figures: Metrics, late: list[Metrics] = late) -> None:
                if 4 * step >= 3 * options.steps:
                    late.append(figures)

            method = {"name": "dmd2", "adversarial": {"weight": WEIGHT, "mix": mix, **said}}
            student = matched(distilling(seed, options.steps, method), teacher, start, data, seen)
            means = {
                told: statistics.mean(float(figures[name]) for figures in late)
                for name, told in WATCHED.items()
                if name in late[0]
            }
            rows[f"{place}, mix {mix:g}"] = judge.of(judge.drawn(student)) | means
    return rows


def main() -> None:
    options = arguments(__doc__, teacher_steps=400, start=100, steps=80, images=1000)
    data = pictures()
    judge = Judge(data, options.images, ("fid", "prdc"))
    compared(options, lambda seed: rows_of(seed, options, data, judge))


if __name__ == "__main__":
    main()
