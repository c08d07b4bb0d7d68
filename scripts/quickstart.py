"""The main job, start to end: distil the bundled teacher, sample the student, compare the two, write the report.

    make quickstart                    (or: python scripts/quickstart.py [--out runs/quickstart])

Every stage is a `diffdistill` verb that you can type yourself; it is printed before it runs. A finished stage is not
repeated, an interrupted distillation is resumed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from diffdistill.assets import asset
from diffdistill.cli import main as diffdistill
from diffdistill.pipelines.folder import weights_digest
from diffdistill.training.device import Device

# An update takes half as long again there, and a tenth less with channels side by side.
FLOAT32_CPU = ["student.regression.steps=1400", "max_train_steps=1560", "speed.channels_last=true"]


def run(*words: str) -> None:
    print("\n$ diffdistill " + " ".join(words), flush=True)
    code = diffdistill(words)
    if code:
        raise SystemExit(code)


def fid(evaluation: dict[str, Any]) -> float:
    return evaluation["metrics"]["fid"]["value"]


def table(student: dict[str, Any]) -> str:
    """Student and teacher by one protocol; the teacher's rows were measured by
    examples/fashion_mnist/evaluate_teacher.py on these very weights.
    """
    folder = asset("fashion_mnist_teacher")
    recorded = json.loads((folder / "evaluations.json").read_text())
    if {row["weights_sha256"] for row in recorded} != {weights_digest(folder)}:
        script = "examples/fashion_mnist/evaluate_teacher.py"
        raise SystemExit(f"the teacher's recorded figures are of other weights: run {script}")
    protocol = student["protocol"]
    rows = [("student", "one step", 1, fid(student))]
    for row in recorded:
        other = row["evaluation"]["protocol"]
        if all(other[key] == protocol[key] for key in ("num_images", "features", "reference")):
            sampling = row["sampling"]
            rows.append(
                (
                    "teacher",
                    f"{sampling['sampler']} {sampling['steps']}",
                    sampling["evaluations"],
                    fid(row["evaluation"]),
                )
            )
    lines = [f"{'model':<8} {'sampler':<14} {'evaluations':>11} {'FID':>8}"]
    lines += [
        f"{model:<8} {sampler:<14} {evaluations:>11} {value:>8.3f}"
        for model, sampler, evaluations, value in sorted(rows, key=lambda r: r[3])
    ]
    features, reference = protocol["features"], protocol["reference"]
    lines.append(
        f"FID of {protocol['num_images']} images, classes balanced, against {reference['name']} "
        f"({reference['num_images']} images), features "
        f"{features['id']} ({features['sha256'][:12]}), real against real at the same N: "
        f"{student['metrics']['fid']['floor']['value']:.3f}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    out = parser.parse_args().out
    began = time.perf_counter()
    if not (out / "evaluation.json").exists():
        device = Device("auto")
        length = FLOAT32_CPU if device.name.type == "cpu" and device.dtype is None else []
        run("distill", "fashion_mnist/quickstart", f"output_dir={out}", "resume_from_checkpoint=latest", *length)
    if not (out / "images").exists():
        run("sample", str(out / "student"), "--num-images", "100", "--out", str(out / "images"))
    print("\n" + table(json.loads((out / "evaluation.json").read_text())["student"]))
    print(
        f"\nlook at   {out / 'images' / 'grid.png'}\nread      {out / 'report.html'}\nuse       {out / 'student'} "
        f"(any diffusers, no diffdistill)"
    )
    print(f"took      {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
