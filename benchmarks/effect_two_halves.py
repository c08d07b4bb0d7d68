"""How far two teachers of disjoint images agree on others, by how many images each has: `--metrics two_halves`.

    python benchmarks/effect_two_halves.py                                       seeds 0, 1, 2; minutes of one thread
    python benchmarks/effect_two_halves.py --seeds 0 --steps 20 --held-out 32                                  a look

Fashion-MNIST at 8x8 without labels; the two halves of 64 or of 8,192 images are drawn anew with each seed, and both
networks begin with the same weights and have as many updates of as many images. Agreement is the metric's, level by
level, on images of the test split.
"""

from argparse import Namespace

import torch
from small_worlds import Row, arguments, compared, device, pictures, settings, trained
from torch import Tensor

from diffdistill.data import ImageSet, load_images
from diffdistill.data.pixels import to_model_range
from diffdistill.evaluation.two_halves import Denoise, telling, two_halves
from diffdistill.training.tasks.teacher import TeacherTask

SIZES = (64, 8192)


def denoiser_of(seed: int, steps: int, images: Tensor) -> Denoise:
    """Of a teacher of these images alone."""
    half = ImageSet(images, None, None, None, "half", "0" * 64)
    model = trained(TeacherTask(settings(seed, steps), half, device()))
    return lambda x, sigma, rows: model(x, sigma)


def rows_of(seed: int, options: Namespace, data: ImageSet, held_out: Tensor) -> dict[str, Row]:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    rows = {}
    for size in SIZES:
        first, second = (denoiser_of(seed, options.steps, data.images[half]) for half in order[: 2 * size].split(size))
        found = two_halves(first, second, held_out)
        heard = telling(found)
        row = {"mean": sum(float(one.agreement) for one in heard) / len(heard)}
        rows[f"{size} images"] = row | {f"{one.sigma:g}": float(one.agreement) for one in found}
    return rows


def main() -> None:
    options = arguments(__doc__, steps=400, held_out=300)
    data = pictures()
    test = load_images("builtin:fashion_mnist", split="test", image_size=8, limit=options.held_out)
    held_out = to_model_range(test.images)
    compared(options, lambda seed: rows_of(seed, options, data, held_out))


if __name__ == "__main__":
    main()
