"""What `loss_weight` does to a small teacher: how far its samples are from data, at equal updates.

    python benchmarks/effect_loss_weights.py                                 seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_loss_weights.py --seeds 0 --steps 20 --images 64               a look

Eight Gaussians on a circle in the plane. Each weight has the level law that its row in `diffdistill.loss_weights`
names. All else is equal, the rate too: Adam does not see a weight's scale. The figure is W2^2, the mean squared
distance of the cheapest pairing of samples (DPM-Solver++, 10 and 30 evaluations) and data, times 1000.
"""

from argparse import Namespace

import torch
from small_worlds import PlaneNetwork, Row, arguments, compared, device, points, ring, settings, trained
from torch import Tensor

from diffdistill.coupling import cheapest, distances
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.loss_weights import LOSS_WEIGHTS
from diffdistill.process import EDM
from diffdistill.sampling.generate import generate
from diffdistill.training.tasks.teacher import TeacherTask

SCALE = 0.36


def squared_w2(a: Tensor, b: Tensor) -> float:
    cost = distances(a, b)
    return 1000 * float(cost[cheapest(cost), torch.arange(len(b))].mean())


def judged(model: Denoiser, real: Tensor) -> Row:
    row: Row = {}
    for steps in (10, 30):
        drawn = generate(model, num_images=len(real), seed=1000, sampler="dpm_solver", steps=steps)
        x = torch.cat([images for images, _ in drawn]).flatten(1).float() / 127.5 - 1
        row[f"W2^2 {steps}"] = squared_w2(x, real)
    return row


def rows_of(seed: int, options: Namespace, data: ImageSet) -> dict[str, Row]:
    real, rows = ring(options.images, torch.Generator().manual_seed(7)), {}
    for name, weight in LOSS_WEIGHTS.items():
        torch.manual_seed(seed)
        start = Denoiser(PlaneNetwork(), EDM(SCALE))
        more = {"loss_weight": name, "level": {"law": weight.law}, "sigma_data": SCALE, "train_batch_size": 128}
        rows[name] = judged(trained(TeacherTask(settings(seed, options.steps, **more), data, device(), start)), real)
    return rows


def main() -> None:
    options = arguments(__doc__, steps=3000, images=1000)
    floor = squared_w2(*(ring(options.images, torch.Generator().manual_seed(seed)) for seed in (7, 8)))
    print(f"data against data: {floor:.2f}")
    data = points()
    compared(options, lambda seed: rows_of(seed, options, data), first="edm")


if __name__ == "__main__":
    main()
