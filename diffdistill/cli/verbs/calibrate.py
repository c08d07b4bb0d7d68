"""`diffdistill calibrate`."""

import argparse

from diffdistill.cli.parser import Parser, Verb, add_device, sampler, seed, several, whole
from diffdistill.data.formats import allowed


def add_flags(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a teacher: folder or Hub id, or builtin:NAME")
    parser.add_argument(
        "--data",
        metavar="DATA",
        required=True,
        help=f"images like those it was trained on: {allowed()}",
    )
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="JSON; an unfinished one of exposure is continued"
    )
    parser.add_argument(
        "--fit",
        choices=("exposure", "signal-leak"),
        default="exposure",
        help="corrections of exposure bias (default), or a start with the brightness of the data, of texts too",
    )
    parser.add_argument("--split", default="train", help="split of the data, where it has several (default: train)")
    parser.add_argument(
        "--sampler", metavar="A,B", type=several(sampler), default=("euler",), help="samplers to fit (default: euler)"
    )
    parser.add_argument(
        "--steps", metavar="5,10", type=several(whole(1)), default=(5, 10, 20), help="steps (default: 5,10,20)"
    )
    parser.add_argument("--num-images", metavar="N", type=whole(2), default=512, help="images a run (default 512)")
    parser.add_argument(
        "--seed", metavar="S", type=seed, default=987654321, help="noise of the fits; not that of later figures"
    )
    parser.add_argument(
        "--method", choices=("variance", "fid"), default="variance", help="fid: the paper's search, 8 values of b"
    )
    parser.add_argument("--metric", choices=("fid", "kid"), default="fid", help="what chooses (default: fid)")
    parser.add_argument(
        "--features",
        metavar="ID|PATH",
        help="feature extractor (default: one that fits the data)",
    )
    parser.add_argument(
        "--check-seeds", metavar="K", type=whole(0), default=3, help="before and after, on K other seeds (default 3)"
    )
    parser.add_argument("--batch-size", metavar="B", type=whole(1), default=64, help="images at a time (default 64)")
    add_device(parser)
    parser.checks += [_not_used]
    parser.names = {"model": "model", "data": "data", "features": "features"}


# What a signal leak is fitted without, and what stands there where nothing is said.
OF_EXPOSURE = {"method": "variance", "metric": "fid", "features": None, "check_seeds": 3}


def _not_used(args: argparse.Namespace) -> str | None:
    given = [name for name, value in OF_EXPOSURE.items() if getattr(args, name) != value]
    if args.fit == "exposure" or not given:
        return None
    return f"--{given[0].replace('_', '-')} is of --fit exposure, and a signal leak is fitted without: leave it out"


VERB = Verb(
    "calibrate",
    "measure exposure bias and brightness, and fit what corrects samplers",
    "diffdistill.parts.exposure_bias.calibration.command:run",
    add_flags,
    60,
    shared=True,
)
