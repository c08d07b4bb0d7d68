"""Fingerprints of short runs: SHA-256 of what they write, to compare two states of the package on one machine.

    python benchmarks/fingerprint.py --python .venv-text/bin/python --out before.json

Equal digests are equal to the last bit. They depend on machine and torch, so none is committed: run it on both states.
"""

import argparse
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

SHORT = ["evaluation.at_end=false", "num_threads=1", "mixed_precision=no"]
RUNS = {
    "fashion_mnist/dmd2": ["distill", "fashion_mnist/dmd2", "max_train_steps=20", "student.regression=null",
                           "sample_every=20", "checkpoint_every=20", *SHORT],
    "fashion_mnist/uni_instruct": ["distill", "fashion_mnist/uni_instruct", "max_train_steps=20",
                                   "student.regression=null", "sample_every=20", "checkpoint_every=20", *SHORT],
    "emoji/mapo": ["align", "emoji/mapo", "max_train_steps=4", "checkpoint_every=4", "sample_every=4",
                   "evaluation.num_pairs=8", "evaluation.judged_images=4", *SHORT],
}  # fmt: skip
COMMANDS = {
    "sample": ["sample", "builtin:fashion_mnist_teacher", "--num-images", "16", "--steps", "5"],
    "sample text": ["sample", "builtin:emoji_teacher", "--prompt", "red apple", "--num-images", "4", "--steps", "3"],
}
EVALUATE = ["evaluate", "--model", "builtin:fashion_mnist_teacher", "--reference", "builtin:fashion_mnist", "--steps",
            "3", "--num-images", "64", "--metrics", "fid,kid,prdc", "--features", "fashion_mnist"]  # fmt: skip
VOLATILE = ("time", "seconds", "per_second", "memory")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def digests(folder: Path) -> dict[str, str]:
    """Of weights, pictures and the log (without times); not of pages, whose words may change."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix in (".safetensors", ".png"):
            found[name] = sha256(file.read_bytes())
        elif file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            kept = [{k: v for k, v in line.items() if not any(word in k for word in VOLATILE)} for line in lines]
            found[name] = sha256(json.dumps(kept, sort_keys=True).encode())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of the environment to try")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in RUNS.items():
            folder = Path(scratch) / name.replace("/", "_")
            run(options.python, *words, f"output_dir={folder}")
            found[name] = digests(folder)
        for name, words in COMMANDS.items():
            folder = Path(scratch) / name.replace(" ", "_")
            run(options.python, *words, "--out", str(folder))
            found[name] = digests(folder)
        result = Path(scratch) / "evaluation.json"
        run(options.python, *EVALUATE, "--json", str(result))
        held = json.loads(result.read_text())
        found["evaluate"] = held["metrics"]
    options.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def run(python: str, *words: str) -> None:
    print("diffdistill", *words, flush=True)
    subprocess.run([python, "-m", "diffdistill", *words, "--quiet"], check=True)


if __name__ == "__main__":
    main()
