"""Data larger than memory: what a run on many images takes, from each place where images can be kept.

    python benchmarks/large_data.py [--small 300000] [--large 20000] [--work DIR] [--json FILE]

Two sets are made: 32x32 PNG in parquet shards, and 512x512 JPEG in tar files (WebDataset); few pictures, repeated
with labels of their own, each of which has to be decoded all the same. On each a tiny network is trained by
`diffdistill.train`, in a process of its own, with `data.keep=disk` (twice: with and without the cache) and `source`.

Printed are the peak resident memory of the process (a worker takes less than 0.1 GB); the seconds from the call of
`train`, torch and diffusers being imported, to the end of the first step, on the wall and on the processors (those of
the workers not counted: what other programs leave of the cores is no matter of ours), and from the start of the
process; whether
the images after a resume are those of the run that was not interrupted; and the time of decoding with one worker and
with two, on the wall and on the processors.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DISTINCT, PER_FILE, GROUP = 64, 25_000, 500
STEPS, CUT = 6, 3  # of the uninterrupted run, and where the other one stops and resumes
TINY = {"kind": "uvit", "scalelong": None}


def pictures(side: int, kind: str) -> list[bytes]:
    """Smooth noise with some texture, as photographs have."""
    random, found = np.random.default_rng(0), []
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1 / side
    for _ in range(DISTINCT):
        noise = np.fft.rfft2(random.standard_normal((3, side, side))) / frequency**1.2
        smooth = np.fft.irfft2(noise, s=(side, side))
        pixels = np.clip(smooth / smooth.std() * 50 + 128, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, kind, quality=90)
        found.append(stream.getvalue())
    return found


def make_small(folder: Path, count: int) -> None:
    """Parquet shards with labels."""
    import pyarrow as pa
    import pyarrow.parquet

    encoded = pictures(32, "PNG")
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, count, PER_FILE)):
        rows = range(first, min(first + PER_FILE, count))
        table = {"image": [encoded[i % DISTINCT] for i in rows], "label": [i % 1000 for i in rows]}
        pa.parquet.write_table(pa.table(table), folder / f"{number:05d}.parquet", row_group_size=GROUP)


def make_large(folder: Path, count: int) -> None:
    """Tar files of JPEG with labels."""
    encoded = pictures(512, "JPEG")
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, count, PER_FILE // 10)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as opened:
            for i in range(first, min(first + PER_FILE // 10, count)):
                for ending, content in (("jpg", encoded[i % DISTINCT]), ("cls", str(i % 1000).encode())):
                    member = tarfile.TarInfo(f"{i:08d}.{ending}")
                    member.size = len(content)
                    opened.addfile(member, io.BytesIO(content))


def begun() -> float:
    """When this process was started, in seconds since 1970."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return float(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def trained(settings: dict[str, Any]) -> dict[str, Any]:
    """One run, in this process; what its batches were, when its first step ended, and what memory it took."""
    import diffusers  # noqa: F401  # counted apart: it takes seconds, and has nothing to do with data
    import torch

    import diffdistill
    from diffdistill.training.tasks import teacher

    imported, computed = time.time(), time.process_time()
    batches: list[int] = []
    ends: list[float] = []
    used: list[float] = []
    device, task = vars(teacher)["Device"], vars(teacher)["TeacherTask"]
    put, update = device.put, task.update

    def seen(self: Any, images: torch.Tensor, labels: torch.Tensor) -> Any:
        batches.append(zlib.crc32(images.numpy().tobytes() + labels.numpy().tobytes()))
        return put(self, images, labels)

    def timed(self: Any, step: int) -> Any:
        found = update(self, step)
        ends.append(time.time())
        used.append(time.process_time())
        return found

    device.put, task.update = seen, timed
    try:
        diffdistill.train("fashion_mnist/teacher", **settings)
    finally:
        device.put, task.update = put, update
    return {
        "batches": batches,
        "from_process": ends[0] - begun(),
        "from_call": ends[0] - imported,
        "cpu_from_call": used[0] - computed,
        "step": (ends[-1] - ends[0]) / max(1, len(ends) - 1),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def decoded(settings: dict[str, Any]) -> dict[str, Any]:
    """The making of a cache by some workers: seconds on the wall, and on the processors."""
    from diffdistill.data import load_images

    wall = time.perf_counter()
    data = load_images(settings["path"], limit=settings["limit"], keep="disk", workers=settings["workers"])
    wall = time.perf_counter() - wall
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"count": len(data), "wall": wall, "cpu": [one.ru_utime + one.ru_stime for one in used]}


def apart(function: str, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """What a function of this file returns, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--call", function, json.dumps(settings)],
        env={**os.environ, "DIFFDISTILL_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.decode().splitlines()[-1])


def rows_of(name: str, path: Path, patch: int, batch: int, work: Path) -> Iterator[dict[str, Any]]:
    """The runs on one set: with an empty cache, with the cache that it left, and without one."""
    uvit = {"patch_size": patch, "hidden_size": 32, "depth": 2, "num_attention_heads": 2}
    common = {
        "data__path": str(path), "network": {**TINY, "uvit": uvit}, "train_batch_size": batch, "sample_every": 0,
        "checkpoint_every": CUT, "log_every": 1, "evaluation__at_end": False, "mixed_precision": "no",
    }  # fmt: skip
    cache, cases = work / f"cache of {name}", (("disk", "first"), ("disk", "second"), ("source", "first"))
    for keep, start in cases:
        run = work / f"{name} {keep} {start}"
        settings = {**common, "data__keep": keep, "output_dir": str(run)}
        found = apart("trained", {**settings, "max_train_steps": STEPS}, cache)
        whole = found["batches"]
        halves = {**settings, "output_dir": f"{run} halves", "resume_from_checkpoint": "latest"}
        parts = [apart("trained", {**halves, "max_train_steps": n}, cache)["batches"] for n in (CUT, STEPS)]
        exact = whole == parts[0] + parts[1] and len(whole) == STEPS
        yield {"set": name, "keep": keep, "start": start, **found, "resumes": exact}
        print(line_of({"set": name, "keep": keep, "start": start, **found, "resumes": exact}), flush=True)


def line_of(row: dict[str, Any]) -> str:
    return (
        f"| {row['set']} | {row['keep']} | {row['start']} | {row['from_call']:.1f} | {row['cpu_from_call']:.1f} | "
        f"{row['from_process']:.1f} | {row['step']:.2f} | {row['peak'] / 1e9:.2f} | "
        f"{'the same' if row['resumes'] else 'OTHERS'} |"
    )


def decoding_line(row: dict[str, Any]) -> str:
    mine, theirs = row["cpu"]
    speed = row["count"] / row["wall"]
    return (
        f"| {row['set']} | {row['count']} | {row['workers']} | {row['wall']:.1f} | {speed:.0f} | {theirs:.1f} | "
        f"{mine:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=300_000, help="images of 32 pixels")
    parser.add_argument("--large", type=int, default=20_000, help="images of 512 pixels")
    parser.add_argument("--decode", type=int, default=10, help="what part of each set one worker and two decode")
    parser.add_argument("--work", type=Path, help="folder for sets, caches and runs; else a temporary one")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        print(json.dumps({"trained": trained, "decoded": decoded}[args.call[0]](json.loads(args.call[1]))))
        return
    made = args.work or Path(tempfile.mkdtemp())
    work = made / "large_data"
    sets = [("small", args.small, make_small, 8, 32), ("large", args.large, make_large, 64, 8)]
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "runs": [], "decoding": []}
    try:
        for name, count, make, *_ in sets:
            if count:
                make(work / name, count)
        print(
            "| set | keep | start | first step after imports, s | of a processor, s | after the process began, s | "
            "a further step, s | peak, GB | after a resume |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name, count, _, patch, batch in sets:
            if count:
                figures["runs"] += rows_of(name, work / name, patch, batch, work)
        print("\n| set | images | workers | seconds | images/s | CPU of the workers, s | CPU of the run, s |")
        print("|---|---|---|---|---|---|---|")
        for name, count, *_ in sets:
            for workers in (1, 2) if count else ():
                settings = {"path": str(work / name), "limit": count // args.decode, "workers": workers}
                row = {"set": name, "workers": workers, **apart("decoded", settings, work / f"{name} by {workers}")}
                figures["decoding"].append(row)
                print(decoding_line(row), flush=True)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=2))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
