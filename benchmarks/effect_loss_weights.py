"""What `loss_weight` does to a small teacher of Fashion-MNIST at 8x8: FID at equal updates.

    python benchmarks/effect_loss_weights.py                                 seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_loss_weights.py --seeds 0 --steps 20 --images 64               a look

Each weight has the level law that its row in `diffdistill.loss_weights` names. All else is equal, the rate too: Adam
does not see a weight's scale.
"""

from argparse import Namespace

from small_worlds import Judge, Row, arguments, compared, device, pictures, settings, trained

from diffdistill.data import ImageSet
from diffdistill.loss_weights import LOSS_WEIGHTS
from diffdistill.training.tasks.teacher import TeacherTask


def rows_of(seed: int, options: Namespace, data: ImageSet, judge: Judge) -> dict[str, Row]:
    rows = {}
    for name, weight in LOSS_WEIGHTS.items():
        config = settings(seed, options.steps, loss_weight=name, level={"law": weight.law})
        rows[name] = judge.of(judge.drawn(trained(TeacherTask(config, data, device()))))
    return rows


def main() -> None:
    options = arguments(__doc__, steps=300, images=500)
    data = pictures()
    judge = Judge(data, options.images)
    compared(options, lambda seed: rows_of(seed, options, data, judge), first="edm")


if __name__ == "__main__":
    main()
