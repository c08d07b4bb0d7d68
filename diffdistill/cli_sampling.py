"""The flags of the verbs that draw images: `sample`, `evaluate`, `calibrate`. No torch: `--help` must come at once."""

import argparse

from diffdistill.cli_flags import (
    BACKENDS,
    METRICS,
    SAMPLERS,
    SCHEDULED_SAMPLERS,
    Parser,
    attention,
    auto_or_numbers,
    device,
    labels,
    metrics,
    number,
    sampler,
    several,
    whole,
)


def prompt(text: str) -> str:
    """A text that is not empty, of whole characters (bytes that are no UTF-8 reach a program as halves of some)."""
    if not text.strip() or any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(f"{text!a} is no prompt; write a text")
    return text.strip()


def add_sampling(parser: Parser) -> None:
    """What `sample` and `evaluate` share."""
    parser.add_argument("--steps", metavar="K", type=whole(1), help="sampling steps (default: the model's own)")
    parser.add_argument(
        "--seed", metavar="S", type=whole(0), default=0, help="image i depends on (S, i) only (default 0)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="B",
        type=whole(1),
        default=64,
        help="images at a time; changes no image (default 64)",
    )
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument("--class-labels", metavar="0,1,2", type=labels, help="classes, in turn (default: all, balanced)")
    wish.add_argument("--prompt", metavar="TEXT", type=prompt, help="one text for all images")
    wish.add_argument("--prompts", metavar="FILE", help="prompts in turn: .txt (one a line), .csv or .jsonl")
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
        help=f"of {', '.join(SAMPLERS + SCHEDULED_SAMPLERS)} (default: heun; of a student "
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
        "--attention",
        metavar="KERNEL",
        type=attention,
        help="auto, sdpa, sdpa-flash, sdpa-efficient, sdpa-cudnn, sdpa-math, xformers or a diffusers backend",
    )
    parser.add_argument("--device", type=device, help="cpu, cuda, cuda:N or mps (default: cuda if there is one)")


def add_sample(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id in diffusers format, or builtin:NAME")
    parser.add_argument(
        "--num-images", metavar="N", type=whole(1), help="may be left out with prompts: then one image of each"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder; nothing is overwritten")
    add_sampling(parser)
    parser.checks.append(_count_missing)


def _count_missing(args: argparse.Namespace) -> str | None:
    given = (args.num_images, args.prompt, args.prompts)
    return "--num-images is missing" if given == (None, None, None) else None


def add_evaluate(parser: Parser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="images to judge, in any form of DATA")
    source.add_argument("--model", metavar="MODEL", action="append", help="model to sample from; may be repeated")
    parser.add_argument(
        "--reference",
        metavar="DATA",
        help="images to compare with: folder, parquet, zip, npz, IDX, builtin:NAME; clip and rewards need none",
    )
    parser.add_argument(
        "--split", help="split of the reference, where it has several (default: train)", default="train"
    )
    parser.add_argument(
        "--metrics",
        metavar="fid,kid",
        type=metrics,
        help=f"of {','.join(METRICS)} (default: fid, or --rewards alone where there is no --reference)",
    )
    parser.add_argument(
        "--num-images", metavar="N", type=whole(2), help="images to judge (default: all of --images, 5000 of a model)"
    )
    parser.add_argument(
        "--features", metavar="ID|PATH", help="feature extractor (default: one that fits the reference)"
    )
    parser.add_argument("--clip", metavar="ID|PATH", help="CLIP of the CLIP score (default: the largest of OpenAI's)")
    parser.add_argument(
        "--rewards",
        metavar="NAME|PATH,...",
        type=several(str),
        help="scores of images for their prompts: pickscore, imagereward, hps_v2, clip, aesthetic, NAME:FOLDER, ...",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="native", help="whose code computes the metrics")
    parser.add_argument(
        "--fid-mode", choices=("tf", "clean"), help="resize before Inception (default: tf below 299 pixels)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures with their protocol")
    parser.add_argument("--plot", metavar="FILE", help="picture of FID against evaluations, for several models")
    parser.add_argument("--neighbours", metavar="FILE", help="picture of the nearest training images")
    add_sampling(parser)
    parser.checks.append(_reference_missing)


# Flags that say how images are compared with others.
COMPARING = ("features", "fid_mode", "neighbours", "plot")


def wanted_metrics(args: argparse.Namespace) -> tuple[str, ...]:
    """Those asked for; else FID, or rewards alone where there is nothing to compare with."""
    if args.metrics is not None:
        return args.metrics
    return () if args.rewards and args.reference is None else ("fid",)


def _reference_missing(args: argparse.Namespace) -> str | None:
    if args.reference is not None:
        return None
    wrong = [metric for metric in wanted_metrics(args) if metric != "clip"]
    wrong += [f"--{name.replace('_', '-')}" for name in COMPARING if getattr(args, name) is not None]
    if not wrong:
        return None
    return (
        f"--reference is missing, and {wrong[0]} needs images to compare with: give it, or measure --metrics clip and "
        f"--rewards alone"
    )


def add_calibrate(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a teacher: folder or Hub id, or builtin:NAME")
    parser.add_argument("--data", metavar="DATA", required=True, help="images like those it was trained on")
    parser.add_argument("--out", metavar="FILE", required=True, help="JSON; an unfinished one is continued")
    parser.add_argument("--split", default="train", help="split of the data, where it has several (default: train)")
    parser.add_argument(
        "--sampler", metavar="A,B", type=several(sampler), default=("euler",), help="samplers to fit (default: euler)"
    )
    parser.add_argument(
        "--steps", metavar="5,10", type=several(whole(1)), default=(5, 10, 20), help="steps (default: 5,10,20)"
    )
    parser.add_argument("--num-images", metavar="N", type=whole(2), default=512, help="images a run (default 512)")
    parser.add_argument(
        "--seed", metavar="S", type=whole(0), default=987654321, help="noise of the fits; not that of later figures"
    )
    parser.add_argument(
        "--method", choices=("variance", "fid"), default="variance", help="fid: the paper's search, 8 values of b"
    )
    parser.add_argument("--metric", choices=("fid", "kid"), default="fid", help="what chooses (default: fid)")
    parser.add_argument("--features", metavar="ID|PATH", help="feature extractor (default: one that fits the data)")
    parser.add_argument(
        "--check-seeds", metavar="K", type=whole(0), default=3, help="before and after, on K other seeds (default 3)"
    )
    parser.add_argument("--batch-size", metavar="B", type=whole(1), default=64, help="images at a time (default 64)")
    parser.add_argument("--device", type=device, help="cpu, cuda, cuda:N or mps (default: cuda if there is one)")
