"""Stations: how many files of the package a training step, `sample` and `evaluate` pass through, and how often back.

    python benchmarks/stations.py [--tree FOLDER]        the package at FOLDER (default: the one that is imported)

A small run of each is followed by `sys.setprofile`. Every function of the package counts once, when it is first
called: `files` are those that the functions lie in, `functions` how many they are, and `returns` how often the next
new function lies in another file, and in one that was left before. Module bodies do not count.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
STEP = ["distill", "fashion_mnist/dmd2", "max_train_steps=3", "student.regression=null", "evaluation.at_end=false",
        "sample_every=0", "train_batch_size=4", "num_threads=1"]  # fmt: skip
TEACHER = "builtin:fashion_mnist_teacher"
SAMPLE = ["sample", TEACHER, "--num-images", "2", "--steps", "2"]
EVALUATE = ["evaluate", "--model", TEACHER, "--reference", "builtin:fashion_mnist", "--split", "test", "--num-images",
            "40", "--steps", "2", "--metrics", "fid,kid"]  # fmt: skip


class Walk:
    """The functions of the package in the order of their first call, inside of calls that `within` accepts."""

    def __init__(self, package: Path, within: Callable[[CodeType], bool] | None = None):
        self.package, self.within = f"{package}{os.sep}", within
        self.depth = 0
        self.seen: dict[CodeType, str] = {}

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(self.package):
            return
        inside = self.within is None or self.within(code)
        if event == "call":
            self.depth += inside
            if self.depth and code not in self.seen and code.co_name != "<module>":
                self.seen[code] = code.co_filename.removeprefix(self.package)
        elif event == "return":
            self.depth -= inside

    def figures(self) -> dict[str, int]:
        stays: list[str] = []
        returns = 0
        for file in self.seen.values():
            if not stays or stays[-1] != file:
                returns += file in stays
                stays.append(file)
        return {"files": len(set(stays)), "functions": len(self.seen), "returns": returns}


def followed(walk: Walk, words: list[str]) -> None:
    from diffdistill.cli import main

    sys.setprofile(walk)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            code = main([*words, "--quiet"])
    finally:
        sys.setprofile(None)
    if code:
        raise SystemExit(code)


def is_step(code: CodeType) -> bool:
    return code.co_name == "update" and "distill" in Path(code.co_filename).stem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--list", action="store_true", help="name the files too")
    options = parser.parse_args()
    if options.tree:
        sys.path.insert(0, str(options.tree.resolve()))
    import diffdistill

    package = Path(diffdistill.__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DIFFDISTILL_CACHE"] = (
            f"{scratch}/cache"  # so that the features of the reference are always computed
        )
        subjects = {
            "one training step": (Walk(package, is_step), [*STEP, f"output_dir={scratch}/run"]),
            "sample": (Walk(package), [*SAMPLE, "--out", f"{scratch}/images"]),
            "evaluate": (Walk(package), EVALUATE),
        }
        for name, (walk, words) in subjects.items():
            followed(walk, words)
            print(name, walk.figures())
            if options.list:
                print("   " + "\n   ".join(dict.fromkeys(walk.seen.values())))


if __name__ == "__main__":
    main()
