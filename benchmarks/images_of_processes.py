"""`sample` and `evaluate` at size: that several processes give the images of one, byte for byte, and its FID.

    python benchmarks/images_of_processes.py [--num-images 50000] [--processes 1,2] [--model MODEL] [--json FILE]

Without a model a student of the bundled Fashion-MNIST teacher is made by some updates of DMD2, as a folder like any
other's: what is compared is the images of one model, not how good they are. Processes are started with torchrun's
words and talk by gloo, on cores. Printed, for each number of them: one SHA-256 of the names and the bytes of all PNGs,
that of `samples.json`, FID as it is written, and seconds. The exit code is 1 where any but the seconds differ.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UPDATES = 10
REFERENCE = "builtin:fashion_mnist"


def run(words: list[str], processes: int) -> float:
    """A command line on so many processes; seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    started = []
    for rank in range(processes):
        place = {
            "RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        env = {**os.environ, **{name: str(value) for name, value in place.items()}}
        started.append(subprocess.Popen([sys.executable, "-m", "diffdistill", *words], env=env))
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"{words[0]} ended with {codes}")
    return time.perf_counter() - began


def student(work: Path) -> str:
    """The folder of a student."""
    quick = ["student.regression=null", "evaluation.at_end=false", "sample_every=0", "checkpoint_every=0"]
    words = ["distill", "fashion_mnist/dmd2", f"output_dir={work / 'run'}", f"max_train_steps={UPDATES}", *quick]
    run(words, 1)
    return str(work / "run" / "student")


def digest(folder: Path) -> str:
    """SHA-256 of the names and the bytes of all PNGs."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.png")):
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def measured(model: str, count: int, processes: int, work: Path) -> dict[str, Any]:
    out, answer = work / f"images{processes}", work / f"answer{processes}.json"
    few = ["--num-images", str(count), "--seed", "0", "--device", "cpu"]
    sampling = run(["sample", model, *few, "--out", str(out)], processes)
    evaluating = run(
        ["evaluate", "--model", model, *few, "--reference", REFERENCE, "--metrics", "fid", "--json", str(answer)],
        processes,
    )
    record = hashlib.sha256((out / "samples.json").read_bytes()).hexdigest()
    fid = json.loads(answer.read_text())["metrics"]["fid"]["value"]
    seconds = {"sample": round(sampling), "evaluate": round(evaluating)}
    files = sum(1 for _ in out.glob("*.png"))
    return {"files": files, "images": digest(out), "samples.json": record, "fid": repr(fid), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or student(Path(folder))
        for processes in map(int, args.processes.split(",")):
            found[processes] = measured(model, args.num_images, processes, Path(folder))
            print(processes, json.dumps(found[processes], indent=1), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))
    facts = [{name: value for name, value in one.items() if name != "seconds"} for one in found.values()]
    same = all(one == facts[0] for one in facts)
    print("the same" if same else "NOT the same")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
