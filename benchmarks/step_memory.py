"""What a step of each method holds beyond the built models, and its CPU seconds beside the bare passes it needs.

The network is EDM's DDPM++ of 2.74 million weights (32 channels, times 1, 2 and 2; four blocks a level, attention at
16 x 16), images 3 x 32 x 32; data are noise. Memory is that of tensors, counted by PyTorch's profiler in a second
step, so moments are there before; seconds are of one thread, in turns with the bare passes.

    python benchmarks/step_memory.py [--batch-size 16] [--repeats 3] [METHOD ...]
"""

import argparse
import copy
import functools

import torch

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser
from diffdistill.parts.bench.command import COMPARED, STEPS, Bench, step_of
from diffdistill.parts.bench.measure import compare, described, needed
from diffdistill.parts.edm.networks import SongUNet
from diffdistill.process import EDM
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import student_task

VARIANTS = {
    "dmd2, features of the critic, R1": {"name": "dmd2", "adversarial": {"features": "critic", "r1": 0.1}},
    "dmd2, guidance 2": {"name": "dmd2", "guidance_scale": 2.0},
    "sid, discriminator (SiDA)": {"name": "sid", "adversarial": {}},
}


def teacher() -> Denoiser:
    torch.manual_seed(0)
    network = SongUNet(
        model_channels=32, channel_mult=(1, 2, 2), num_blocks=4, attn_resolutions=(16,), label_dim=10,
        num_class_embeds=11, dropout=0.0,
    )  # fmt: skip
    return Denoiser(network, EDM(), null_class=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(teacher(), Device("no"), args.batch_size, args.repeats, ())
    bare, data = bench.bare(bench.model), bench.data()
    settings = {name: {"name": name} for name in COMPARED} | VARIANTS
    print(f"{'':<34} {'peak, MB':>9} {'CPU s':>7} {'bare':>7} {'ratio':>6}")
    for name in args.methods or settings:
        config = Distill(
            output_dir=".", max_train_steps=STEPS, train_batch_size=args.batch_size, method=settings[name],
        )  # fmt: skip
        task = student_task(config, copy.deepcopy(bench.model), data, bench.device)
        passes = needed(config.method, config.critic.updates_per_step)
        step = step_of(task)
        step()  # what is made once, moments and caches of kernels, is made before anything is counted
        row = compare(name, step, functools.partial(bare.run, passes), described(passes), bench.place, args.repeats)
        print(
            f"{name:<34} {row.peak_bytes / 1e6:>9.0f} {row.ours_cpu.median:>7.2f} {row.bare_cpu.median:>7.2f} "
            f"{row.ratio_cpu:>6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
