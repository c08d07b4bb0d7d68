"""The flags that `sample` and `evaluate` share: what a model draws, and how."""

from diffdistill.cli.parser import (
    Parser,
    add_device,
    attention,
    auto_or_numbers,
    labels,
    number,
    precision,
    prompt,
    sampler,
    seed,
    whole,
)
from diffdistill.sampling.sampler import SAMPLERS


def add_sampling(parser: Parser) -> None:
    """What `sample` and `evaluate` share."""
    parser.add_argument("--steps", metavar="K", type=whole(1), help="sampling steps (default: the model's own)")
    parser.add_argument("--seed", metavar="S", type=seed, default=0, help="image i depends on (S, i) only (default 0)")
    parser.add_argument(
        "--batch-size",
        metavar="B",
        type=whole(1),
        default=64,
        help="images at a time; changes no image (default 64)",
    )
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument(
        "--class-labels", metavar="0,1,2", type=labels, help="classes, in turn (default: all, balanced)"
    )
    subject.add_argument("--prompt", metavar="TEXT", type=prompt, help="one text for all images")
    subject.add_argument("--prompts", metavar="FILE", help="prompts in turn: .txt (one a line), .csv or .jsonl")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from (default: no text)")
    parser.add_argument(
        "--guidance-scale",
        metavar="W",
        type=number(0),
        help="classifier-free guidance (default: none; of a text-to-image teacher its pipeline's own)",
    )
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        type=sampler,
        help=f"of {', '.join(SAMPLERS.names())}, or FILE.py:NAME (default: heun; of a student "
        "consistency, of a text-to-image teacher dpm_solver or flow_euler)",
    )
    parser.add_argument(
        "--epsilon-scaling",
        metavar="auto|B|K,B",
        type=auto_or_numbers("B or K,B", 1, 2),
        help="exposure-bias correction",
    )
    parser.add_argument(
        "--time-shift-sampler",
        metavar="auto|WINDOW,CUTOFF",
        type=auto_or_numbers("WINDOW,CUTOFF", 2, 2),
        help="exposure-bias correction by shifted steps",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="what 'auto' reads, made by calibrate (default: MODEL/calibration.json)"
    )
    parser.add_argument(
        "--signal-leak",
        metavar="FILE|auto",
        help="begin with the brightness of data, as calibrate --fit signal-leak has it (auto: MODEL/signal_leak.json)",
    )
    parser.add_argument(
        "--attention",
        metavar="KERNEL",
        type=attention,
        help="auto, sdpa, sdpa-flash, sdpa-efficient, sdpa-cudnn, sdpa-math, xformers or a diffusers backend",
    )
    parser.add_argument(
        "--dtype",
        metavar="PRECISION",
        type=precision,
        help="float32, bfloat16, float16 or auto: what the model is held and computed in (default: float32)",
    )
    add_device(parser)
