"""What PFGM++ (`noise.law=student_t`) does to a small teacher: FID in few and many steps, and beside errors.

    python benchmarks/effect_heavy_tails.py                                      seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_heavy_tails.py --seeds 0 --steps 20 --images 64                                  a look

Teachers of Fashion-MNIST at 8x8 of equal updates, under Gaussian noise and Student's t of D = 2048, 128 and 3. Of the
noise's length D is the law's width beside what N numbers have by themselves, 64 here: 3 is to them what 128 is to the
3,072 of CIFAR-10. FID is by DPM-Solver++ with 5, 10 and 30 evaluations; the errors are of the paper's two kinds:
weights rounded to 5 bits (10 evaluations), and noise of alpha sigma at each of 10 Euler steps.
"""

import copy
from argparse import Namespace
from itertools import pairwise
from typing import Any

import torch
from small_worlds import Judge, Row, arguments, compared, device, pictures, settings, trained
from torch import Tensor

from diffdistill.data import ImageSet
from diffdistill.data.pixels import to_uint8
from diffdistill.denoiser import Denoiser
from diffdistill.process import karras_levels
from diffdistill.training.tasks.teacher import TeacherTask

ARMS: dict[str, dict[str, Any]] = {"gaussian": {"law": "gaussian"}} | {
    f"D = {dimension}": {"law": "student_t", "dimension": dimension} for dimension in (2048, 128, 3)
}


@torch.inference_mode()
def shaken(model: Denoiser, count: int, alpha: float, steps: int = 10) -> Tensor:
    """uint8 images by Euler's steps, before each of which the state is moved by alpha sigma z."""
    torch.manual_seed(1000)
    levels = [*karras_levels(steps, model.sigma_min, model.sigma_max).tolist(), 0.0]
    x, labels = levels[0] * model.noise.of(torch.randn(count, *model.image_shape)), torch.arange(count) % 10
    for level, below in pairwise(levels):
        x = x + alpha * level * torch.randn_like(x)
        x0 = torch.cat([
            model(part, torch.full((len(part),), level), of_part)
            for part, of_part in zip(x.split(16), labels.split(16), strict=True)
        ])  # fmt: skip
        x = x0 + below / level * (x - x0)
    return to_uint8(x)


def rounded(model: Denoiser, bits: int) -> Denoiser:
    """Its matrices and kernels on 2^bits - 1 values each, even about 0."""
    model, most = copy.deepcopy(model), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                unit = weight.abs().max() / most
                weight.copy_((weight / unit).round() * unit)
    return model


def judged(model: Denoiser, judge: Judge) -> Row:
    row = {f"FID {steps}": judge.of(judge.drawn(model, steps=steps))["FID"] for steps in (5, 10, 30)}
    row["5 bits"] = judge.of(judge.drawn(rounded(model, 5)))["FID"]
    return row | {f"alpha {alpha:g}": judge.of(shaken(model, judge.images, alpha))["FID"] for alpha in (0.0, 0.2)}


def rows_of(seed: int, options: Namespace, data: ImageSet, judge: Judge) -> dict[str, Row]:
    return {
        name: judged(trained(TeacherTask(settings(seed, options.steps, noise=noise), data, device())), judge)
        for name, noise in ARMS.items()
    }


def main() -> None:
    options = arguments(__doc__, steps=250, images=200)
    data = pictures()
    judge = Judge(data, options.images)
    compared(options, lambda seed: rows_of(seed, options, data, judge), first="gaussian")


if __name__ == "__main__":
    main()
