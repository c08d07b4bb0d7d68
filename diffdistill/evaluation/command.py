"""`diffdistill evaluate`: metrics of images or models against a reference, printed and written with their protocol.

`--json FILE` holds the result of one subject, or `{"models": [...]}` for several. An existing FILE is replaced only if
it holds the answer to the same request; any other file is left alone, exit code 2.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffdistill.cli.verbs.evaluate import wanted_metrics
from diffdistill.data import ImageSet, load_images
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.evaluation import table
from diffdistill.evaluation.evaluator import Evaluator
from diffdistill.evaluation.extractors.base import FeatureExtractor
from diffdistill.evaluation.features import load_features
from diffdistill.evaluation.plot import plot_evaluations
from diffdistill.evaluation.statistics import Statistics, is_statistics, load_statistics
from diffdistill.evaluation.subjects import Pair, Subject, subjects
from diffdistill.evaluation.text_evaluator import TextEvaluator
from diffdistill.evaluation.text_scores import NO_TEXTS
from diffdistill.files import read_json, write_json
from diffdistill.rewards import load_reward
from diffdistill.rewards.protocol import Reward
from diffdistill.sampling.generate import pick_device

# What decides the numbers; batch size and device do not.
REQUEST = (
    "images",
    "model",
    "reference",
    "split",
    "metrics",
    "num_images",
    "features",
    "clip",
    "rewards",
    "backend",
    "fid_mode",
    "seed",
    "steps",
    "class_labels",
    "prompt",
    "prompts",
    "negative_prompt",
    "guidance_scale",
    "sampler",
    "epsilon_scaling",
    "time_shift_sampler",
    "calibration",
)


def run(args: Namespace) -> int:
    """Evaluate, print, write; raises the errors of errors.py."""
    args.metrics = wanted_metrics(args)
    request = {key: getattr(args, key) for key in REQUEST}
    target = None if args.json is None else Path(args.json)
    if target is not None:
        refuse_other(target, request)
    waiting = subjects(args)
    if "clip" in args.metrics and args.images is not None and not waiting[0](None).texts:
        raise ConfigError(NO_TEXTS)
    if args.clip is not None and "clip" not in args.metrics:
        raise ConfigError("--clip names the CLIP of metric 'clip', which is not asked for: add it to --metrics")
    rewards = [load_reward(name) for name in args.rewards or ()]
    reference = None if args.reference is None else read_reference(args.reference, args.split)
    evaluator, warning = evaluator_of(args, reference, rewards)
    captions = reference.texts if isinstance(reference, ImageSet) else None
    results = [measure(evaluator, opened(captions), warning, args.neighbours) for opened in waiting]
    print(table.one(results[0]) if len(results) == 1 else table.comparison(results))
    for text in dict.fromkeys(text for result in results for text in result["warnings"]):
        print(f"warning: {text}", file=sys.stderr)
    if args.plot is not None:
        plot_evaluations(results, args.plot)
    if target is not None:
        whole = results[0] if len(results) == 1 else {"models": results}
        write_json(target, {"request": request, **whole})
    return 0


def evaluator_of(
    args: Namespace, reference: ImageSet | Statistics | None, rewards: Sequence[Reward]
) -> tuple[Evaluator | TextEvaluator, str | None]:
    """What measures, and a warning about its features."""
    device = pick_device(args.device)
    if reference is None:
        return TextEvaluator(args.metrics, clip_model=args.clip, rewards=rewards, device=device), None
    extractor, warning = choose_features(args.features, args.fid_mode, reference, device)
    evaluator = Evaluator(
        reference,
        extractor,
        args.metrics,
        backend=args.backend,
        seed=args.seed,
        device=device,
        clip_model=args.clip,
        rewards=rewards,
        progress=True,
    )
    return evaluator, warning


def measure(
    evaluator: Evaluator | TextEvaluator, subject: Subject, warning: str | None = None, picture: str | None = None
) -> dict[str, Any]:
    """The result of one subject, with what it is."""
    with tqdm(total=subject.count, desc=subject.name[-30:], unit="image", leave=False) as bar:

        def watched() -> Iterator[Pair]:
            for images, labels in subject.batches:
                yield images, labels
                bar.update(len(images))

        more: dict[str, Any] = {} if picture is None else {"picture": picture}
        result = evaluator(watched(), texts=subject.texts, num_images=subject.count, **more)
    if warning is not None:
        result["warnings"].insert(0, warning)
    return {"subject": subject.about, **result}


def read_reference(data: str, split: str) -> ImageSet | Statistics:
    """Images of any DATA, or a statistics file."""
    return load_statistics(data) if is_statistics(data) else load_images(data, split=split)


def choose_features(
    name: str | None, mode: str | None, reference: ImageSet | Statistics, device: torch.device
) -> tuple[FeatureExtractor, str | None]:
    """The extractor asked for; else the one that fits the reference, and a warning where that could not be had."""
    if name is not None:
        return load_features(name, mode=mode, device=device), None
    if isinstance(reference, ImageSet) and reference.images.shape[1] == 1 and max(reference.images.shape[2:]) <= 32:
        return load_features("fashion_mnist", mode=mode, device=device), None
    if isinstance(reference, ImageSet) and reference.name == "builtin:emoji":
        return load_features("emoji", mode=mode, device=device), None
    try:
        return load_features("inception", mode=mode, device=device), None
    except CheckpointError as error:
        if isinstance(reference, Statistics):
            raise
        text = f"measured with the bundled features, made for small gray images, and not with Inception: {error}"
        return load_features("fashion_mnist", mode=mode, device=device), text


def refuse_other(target: Path, request: dict[str, Any]) -> None:
    """ConfigError where `target` holds anything but the answer to the same request."""
    if not target.exists():
        if not target.absolute().parent.is_dir():
            raise ConfigError(f"--json {target}: there is no folder {target.absolute().parent}; make it first")
        return
    try:
        held = read_json(target)["request"]
    except (OSError, ValueError, KeyError, TypeError):
        held = None
    if held != json.loads(json.dumps(request)):
        raise ConfigError(f"--json {target} exists and holds something else: delete it or name another file")
