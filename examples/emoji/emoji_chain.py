"""What each step of a chain adds, on the emoji: FID and CLIP score of every x0 on the way.

    python examples/emoji/emoji_chain.py runs/emoji_four_step_stage2/student builtin:emoji_teacher \\
        --times 999 874 749 624

A student's chain is its own. A teacher is solved by Heun from every level to 0 (--heun steps) and noised again to the
next one: that is what a perfect student of these times would do. 1,000 captions of `train`, seed 1000, as
`evaluate_emoji.py`; a student's last x0 is its image there.
"""

import argparse
from itertools import pairwise

import torch
from emoji_data import emoji_rows
from evaluate_emoji import SEED, Measures
from torch import Tensor

from diffdistill.data.pixels import to_uint8
from diffdistill.data.prompts import spread
from diffdistill.denoiser import Denoiser
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.schedule import text_schedule
from diffdistill.sampling.levels import karras
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.samplers.heun import heun

COUNT, ROWS = 1000, 20
GUIDANCE = 2.0  # the teacher's own


def solve(model: TextDenoiser, x: Tensor, sigma: float, cond: Tensor, steps: int) -> Tensor:
    """x0: a student's own, or where the guided teacher's trajectory through x leads."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return model.guided(x, x.new_full((len(x),), sigma), cond, 1.0 if model.levels else GUIDANCE)

    if model.levels:
        return denoise(x, sigma)
    return heun(denoise, x, karras(steps, model.sigma_min, sigma))


@torch.inference_mode()
def chain(model: TextDenoiser, captions: list[str], levels: tuple[float, ...], steps: int) -> list[Tensor]:
    """Images of every x0 of the chain, uint8 `(N, 3, H, W)` each."""
    made: list[list[Tensor]] = [[] for _ in levels]
    for start in range(0, len(captions), ROWS):
        here = range(start, min(start + ROWS, len(captions)))
        cond = model.prompts.ids([captions[i] for i in here])
        noise = ImageNoise(SEED, here, model.image_shape)
        x = model.process.start_scale(levels[0]) * noise.draw()
        for k, (level, below) in enumerate(pairwise((*levels, 0.0))):
            x0 = solve(model, x, level, cond, steps)
            made[k].append(to_uint8(model.decode(x0)))
            x = x0 + below * noise.draw()
    return [torch.cat(parts) for parts in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", metavar="MODEL")
    parser.add_argument("--times", type=float, nargs="+", default=[999, 749, 499, 249], help="a teacher's")
    parser.add_argument("--heun", type=int, default=8, help="a teacher's steps from every level")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measures = Measures()
    captions = [row.text for row in spread(emoji_rows("train"), COUNT)]
    for name in args.model:
        model = Denoiser.from_pretrained(name).eval()
        assert isinstance(model, TextDenoiser)
        levels = model.levels or text_schedule(model.adapter, model.process, len(args.times), args.times).levels
        for k, images in enumerate(chain(model, captions, tuple(levels), args.heun), 1):
            figures = f"FID {measures.fid(images):.2f}, CLIP score {measures.clip_of(images, captions):.1f}"
            print(f"{name}, x0 number {k}, from level {levels[k - 1]:.2f}: {figures}", flush=True)


if __name__ == "__main__":
    main()
