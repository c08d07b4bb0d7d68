"""Measure a teacher at several numbers of steps and keep the figures beside its weights, in `evaluations.json`.

    python examples/fashion_mnist/evaluate_teacher.py assets/fashion_mnist_teacher \\
        --data builtin:fashion_mnist --num-images 5000

Rows that are there already, of the same weights, seed, number of images, data and features, are kept. A distillation
run that evaluates by the same protocol (N, features, reference) shows these figures next to the student's. Cost on one
quiet CPU core: about 10 minutes for the 35-evaluation row, forty minutes for the whole table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from diffdistill.data import load_images
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import Evaluator, load_features
from diffdistill.evaluation.figures import numbers_of
from diffdistill.files import write_json
from diffdistill.pipelines.folder import weights_digest
from diffdistill.sampling.generate import generate
from diffdistill.sampling.plan import plan_sampling

# (sampler, steps): what a practitioner would compare a one-step student with.
ROWS = [
    *(("heun", steps) for steps in (18, 10, 5)),
    *(("dpm_solver", steps) for steps in (12, 11, 10, 9, 8, 7, 6, 5)),
    *(("euler", steps) for steps in (9, 1)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="builtin:fashion_mnist")
    parser.add_argument("--features", default="fashion_mnist")
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000])
    args = parser.parse_args()

    data = load_images(args.data)
    evaluator = Evaluator(data, args.features, ("fid", "kid", "prdc"))
    features = load_features(args.features).sha256
    protocol = {"num_images": args.num_images, "features": features, "reference": data.fingerprint}
    model = Denoiser.from_pretrained(str(args.model))
    digest, file = weights_digest(args.model), args.model / "evaluations.json"
    before = json.loads(file.read_text()) if file.exists() else []
    rows = [row for row in before if row["weights_sha256"] == digest]
    done = [row["sampling"] for row in rows if measured_by(row["evaluation"]["protocol"]) == protocol]
    for sampler, steps in ROWS:
        for seed in args.seeds:
            plan = plan_sampling(model, sampler=sampler, steps=steps)
            sampling = {"sampler": sampler, "steps": steps, "evaluations": plan.evaluations, "seed": seed}
            if sampling in done:
                continue
            batches = generate(
                model, num_images=args.num_images, seed=seed, batch_size=250, sampler=sampler, steps=steps
            )
            result = evaluator(batches)
            rows.append({"sampling": sampling, "weights_sha256": digest, "evaluation": result})
            print(sampling, {name: round(value, 4) for name, value in numbers_of(result).items()}, flush=True)
            # After every row: the table takes long, and a part of it is of use.
            write_json(file, rows)


def measured_by(protocol: dict[str, Any]) -> dict[str, Any]:
    """What must agree for two figures to be of one kind."""
    return {
        "num_images": protocol["num_images"],
        "features": protocol["features"]["sha256"],
        "reference": protocol["reference"]["fingerprint"],
    }


if __name__ == "__main__":
    main()
