"""`diffdistill evaluate`."""

import argparse

from diffdistill.cli.parser import Parser, Verb, known, several, whole
from diffdistill.cli.sampling_flags import add_sampling
from diffdistill.data.formats import allowed
from diffdistill.evaluation.backends import BACKENDS
from diffdistill.evaluation.metrics import metrics
from diffdistill.evaluation.metrics.two_halves import drawn_in_vain
from diffdistill.rewards.kinds import allowed_rewards


def add_flags(parser: Parser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="images to judge, in any form of DATA")
    source.add_argument(
        "--model",
        metavar="MODEL",
        action="append",
        help="model to sample from; may be repeated",
    )
    parser.add_argument(
        "--other-half", metavar="MODEL", help="a model trained on disjoint images, for the metric two_halves"
    )
    parser.add_argument(
        "--reference",
        metavar="DATA",
        help=f"images to compare with: {allowed()}; clip and rewards need none",
    )
    parser.add_argument(
        "--split", help="split of the reference, where it has several (default: train)", default="train"
    )
    parser.add_argument(
        "--metrics",
        metavar="fid,kid",
        type=several(known("metric", metrics)),
        help=f"of {','.join(metrics())}, or FILE.py:NAME (default: fid, or --rewards alone without --reference)",
    )
    parser.add_argument(
        "--num-images", metavar="N", type=whole(2), help="images to judge (default: all of --images, 5000 of a model)"
    )
    parser.add_argument(
        "--features",
        metavar="ID|PATH",
        help="feature extractor (default: one that fits the reference)",
    )
    parser.add_argument("--clip", metavar="ID|PATH", help="CLIP of the CLIP score (default: the largest of OpenAI's)")
    parser.add_argument(
        "--rewards",
        metavar="NAME|PATH,...",
        type=several(str),
        help=f"scores of images for their prompts: {allowed_rewards()}",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        type=known("backend", BACKENDS.names),
        default="native",
        help=f"whose code computes fid and kid: {', '.join(BACKENDS.names())} (default: native)",
    )
    parser.add_argument(
        "--fid-mode", choices=("tf", "clean"), help="resize before Inception (default: tf below 299 pixels)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures with their protocol")
    parser.add_argument("--plot", metavar="FILE", help="picture of FID against evaluations, for several models")
    parser.add_argument("--neighbours", metavar="FILE", help="picture of the nearest training images")
    add_sampling(parser)
    parser.checks += [_reference_missing, _not_used]
    parser.names = {
        "images": "data",
        "model": "model_at_steps",
        "other_half": "model",
        "reference": "data",
        "features": "features",
        "rewards": "reward",
    }


# Flags that say how images are compared with others.
COMPARING = ("features", "fid_mode", "neighbours", "plot")


def _reference_missing(args: argparse.Namespace) -> str | None:
    """What needs images to compare with, where there are none; of FILE.py:NAME the metric itself says it later."""
    if args.reference is not None:
        return None
    rows = metrics()
    asked = args.metrics or (() if args.rewards else ("fid",))
    wrong = [name for name in asked if name in rows and rows[name].compares]
    wrong += [f"--{name.replace('_', '-')}" for name in COMPARING if getattr(args, name) is not None]
    if not wrong:
        return None
    return (
        f"--reference is missing, and {wrong[0]} needs images to compare with: give it, or measure --metrics clip and "
        f"--rewards alone"
    )


def _not_used(args: argparse.Namespace) -> str | None:
    """A flag that nothing that is asked for looks at; what a metric of FILE.py:NAME looks at is not known here."""
    names, rows = args.metrics or (() if args.rewards and args.reference is None else ("fid",)), metrics()
    asked = [rows.get(name) for name in names]
    of_models = [row.name for row in asked if row is not None and row.probe is not None]
    if args.images is not None and of_models:
        return f"{of_models[0]} is of a model, which makes images for it: give --model in place of --images"
    halves = [row.name for row in asked if row is not None and "other_half" in row.needs]
    if halves and args.other_half is None:
        return f"{halves[0]} compares the model with one of other images: give --other-half MODEL, or leave it out"
    if args.other_half is not None and not halves and None not in asked:
        return "--other-half is of the metric two_halves, which is not asked for: add it to --metrics, or leave it out"
    alone = halves and len(halves) == len(asked) and not args.rewards
    if alone and (why := drawn_in_vain(halves[0], args, args.model or ())) is not None:
        return why
    if args.split != "train" and args.reference is None:
        return "--split is of --reference, which is not given: leave it out"
    if args.calibration is not None and (args.epsilon_scaling, args.time_shift_sampler) == (None, None):
        return "--calibration goes with --epsilon-scaling auto or --time-shift-sampler: leave it out"
    if None in asked:
        return None
    if args.backend != "native" and not {"fid", "kid"} & set(names):
        return f"--backend {args.backend} computes fid and kid, which are not asked for: leave it out"
    looked_at = any(row.looks_at_features for row in asked if row is not None)
    for flag, value in (("--features", args.features), ("--fid-mode", args.fid_mode)):
        if value is not None and not looked_at:
            return f"{flag} is not used by {','.join(names) or '--rewards'}, which look at no features: leave it out"
    reads = bool(args.rewards) or any("texts" in row.needs or row.score for row in asked if row is not None)
    if args.images is not None and not reads and (args.prompt or args.prompts):
        return f"prompts are not used by {','.join(names)}: add clip or --rewards, or leave them out"
    return None


VERB = Verb(
    "evaluate", "FID and others, with their protocol", "diffdistill.evaluation.command:run", add_flags, 50, shared=True
)
