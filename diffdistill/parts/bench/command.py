"""`diffdistill bench`: the table, with the protocol that the figures need to mean anything."""

import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffdistill.denoiser import Denoiser
from diffdistill.errors import DiskError
from diffdistill.files import write_json
from diffdistill.parts.bench.measure import Row, Seconds
from diffdistill.parts.bench.passes import WORDS
from diffdistill.parts.bench.subjects import Bench
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.sampling.generate import pick_device
from diffdistill.training.device import Device
from diffdistill.training.run_folder import environment

QUICK_METHODS = ("dmd2", "sid")
HEADER = f"{'':<38} {'ours, ms':>24} {'bare, ms':>24} {'ratio':>6} {'peak MB':>8} {'bare':>6}"


def run(args: Namespace) -> int:
    """Measure, print, write."""
    target = None if args.json is None else Path(args.json)
    if target is not None and not target.absolute().parent.is_dir():
        raise DiskError(f"--json {target}: there is no folder {target.absolute().parent}; make it first")
    device = Device(args.mixed_precision)
    if args.device is not None:
        device.name = pick_device(args.device)
    model = Denoiser.from_pretrained(args.model, device.name)
    batch, repeats = args.batch_size or (4 if args.quick else 8), 2 if args.quick else 3
    bench = Bench(model, device, batch, repeats, QUICK_METHODS) if args.quick else Bench(model, device, batch, repeats)
    about = protocol(bench, args)
    for key, value in about.items():
        print(f"{key.replace('_', ' '):<16} {value}")
    print(f"\n{HEADER}")
    rows = []
    for row in bench.rows():
        print(line(row), flush=True)
        rows.append(row)
    print("\nattention, forward pass of the bare network, ms")
    kernels = list(bench.attention())
    for name, seconds in kernels:
        print(f"{name:<38} {'does not run here' if seconds is None else milliseconds(seconds):>24}")
    print("\nbare: the passes of the network alone, timed in turns with ours; of them")
    for name, words in WORDS.items():
        print(f"  {name:<18} {words}")
    if target is not None:
        write(target, about, rows, kernels)
    return 0


def protocol(bench: Bench, args: Namespace) -> dict[str, Any]:
    """What a reader must know before comparing two tables."""
    here = environment()
    weights = sum(parameter.numel() for parameter in bench.model.network.parameters())
    return {
        "model": args.model,
        "weights_sha256": weights_digest(locate(args.model))[:16],
        "network": f"{type(bench.model.network).__name__}, {weights / 1e6:.2f} million weights",
        "images": "x".join(map(str, bench.model.image_shape)),
        "batch": bench.batch,
        "device": here["gpu"] if bench.place.type == "cuda" else f"{bench.place.type}, {processor()}",
        "dtype": str(bench.device.dtype or torch.float32).removeprefix("torch."),
        "threads": here["threads"],
        "load": f"{os.getloadavg()[0]:.1f} processes on {here['cpu_count']} cores when it began",
        "repeats": f"{bench.repeats} pairs after one to warm up; median (least to most), ratio of the pairs' median",
        "versions": ", ".join(f"{name} {here[name]}" for name in ("diffdistill", "torch", "diffusers", "python")),
        "date": here["started"],
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def milliseconds(seconds: Seconds) -> str:
    return f"{1e3 * seconds.median:.1f} ({1e3 * seconds.least:.1f} to {1e3 * seconds.most:.1f})"


def line(row: Row) -> str:
    text = (
        f"{row.name:<38} {milliseconds(row.ours):>24} {milliseconds(row.bare):>24} {row.ratio:>6.2f} "
        f"{row.peak_bytes / 1e6:>8.1f} {row.bare_peak_bytes / 1e6:>6.1f}"
    )
    if row.images:
        return f"{text}\n  {row.images / row.ours.median:.1f} images/s, bare {row.images / row.bare.median:.1f}"
    return f"{text}\n  bare: {row.passes}"


def write(target: Path, about: dict[str, Any], rows: list[Row], kernels: list[tuple[str, Seconds | None]]) -> None:
    content = {
        "protocol": about,
        "rows": [row.record() for row in rows],
        "attention": {name: None if seconds is None else asdict(seconds) for name, seconds in kernels},
    }
    try:
        write_json(target, content)
    except OSError as error:
        raise DiskError(f"cannot write '{target}' ({error.strerror}); name another file") from error
