"""`diffdistill sample`: images, a grid, and a record from which each image can be made again alone."""

import sys
from argparse import Namespace

from diffdistill import processes
from diffdistill.parts.exposure_bias.corrections import AUTO
from diffdistill.sampling.plan import request_of
from diffdistill.sampling.run import sample


def run(args: Namespace) -> int:
    """Write `00000.png` ..., `grid.png` and `samples.json` into `--out`, which appears whole or not at all."""
    samples = sample(
        args.model,
        num_images=args.num_images,
        seed=args.seed,
        batch_size=args.batch_size,
        out=args.out,
        keep=False,
        device=args.device,
        dtype=args.dtype,
        attention=args.attention or "auto",
        image_format=args.format,
        quality=args.quality,
        size=args.size,
        request=request_of(args),
    )
    if not processes.leader():
        return 0
    plan, count = samples.plan, len(samples.settings["images"])
    guidance = plan.conditions.guidance_scale
    if AUTO in (args.epsilon_scaling, args.time_shift_sampler) and guidance != 1:
        print("note: the calibration was made without guidance, whose images differ from the data", file=sys.stderr)
    guided = "" if guidance == 1 else f", guidance {guidance:g}"
    print(
        f"{args.out}: {_count(count, 'image')}, {plan.sampler}, {_count(plan.evaluations, 'evaluation')} each{guided}"
    )
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
