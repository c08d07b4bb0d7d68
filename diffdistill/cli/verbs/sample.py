"""`diffdistill sample`."""

import argparse
import re

from diffdistill.cli.parser import Parser, Verb, whole
from diffdistill.cli.sampling_flags import add_sampling
from diffdistill.errors import ConfigError
from diffdistill.sampling.pictures import FORMATS, PictureFile


def add_flags(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id in diffusers format, or builtin:NAME")
    parser.add_argument(
        "--num-images", metavar="N", type=whole(1), help="may be left out with prompts: then one image of each"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder; nothing is overwritten")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the images (default png; grid.png stays)")
    parser.add_argument(
        "--quality",
        metavar="Q",
        type=whole(1, 100),
        help="1 to 100, of webp (default: without loss) and jpg (default 95)",
    )
    parser.add_argument(
        "--size", metavar="WxH", type=_size, help="pixels, of a text-to-image model (default: the model's own)"
    )
    add_sampling(parser)
    parser.checks += [_count_missing, _calibration_unused, _quality_unused]
    parser.names = {"model": "model"}


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
    if sides is None:
        raise argparse.ArgumentTypeError(f"'{text:.40}' is no size; write width and height in pixels, as 1024x768")
    return int(sides[1]), int(sides[2])


def _count_missing(args: argparse.Namespace) -> str | None:
    given = (args.num_images, args.prompt, args.prompts)
    return "--num-images is missing" if given == (None, None, None) else None


def _calibration_unused(args: argparse.Namespace) -> str | None:
    if args.calibration is not None and (args.epsilon_scaling, args.time_shift_sampler) == (None, None):
        return "--calibration goes with --epsilon-scaling auto or --time-shift-sampler: leave it out"
    return None


def _quality_unused(args: argparse.Namespace) -> str | None:
    try:
        PictureFile(args.format, args.quality).check()
    except ConfigError as error:
        return str(error)
    return None


VERB = Verb(
    "sample", "make images with a teacher or a student", "diffdistill.sampling.command:run", add_flags, 40, shared=True
)
