"""Measure a teacher at several numbers of steps and keep the figures beside its weights, in `evaluations.json`.

    python scripts/evaluate_teacher.py assets/fashion_mnist_teacher --data builtin:fashion_mnist --num-images 5000

A distillation run that evaluates by the same protocol (N, features, reference) shows these figures next to the
student's. Cost on one quiet CPU core: about 10 minutes for the 35-evaluation row, 25 for the whole table.
"""

import argparse
from pathlib import Path

from diffdistill.data import load_images
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import Evaluator
from diffdistill.models.folder import weights_digest
from diffdistill.sampling.generate import generate, plan_sampling
from diffdistill.training.loop import flat
from diffdistill.training.run import write_json

# (sampler, steps): what a practitioner would compare a one-step student with.
ROWS = [("heun", 18), ("heun", 10), ("heun", 5), ("dpm_solver", 10), ("dpm_solver", 5), ("euler", 9), ("euler", 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="builtin:fashion_mnist")
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000])
    args = parser.parse_args()

    evaluator = Evaluator(load_images(args.data), "fashion_mnist", ("fid", "kid", "prdc"))
    model = Denoiser.from_pretrained(str(args.model))
    rows = []
    for sampler, steps in ROWS:
        for seed in args.seeds:
            plan = plan_sampling(model, sampler=sampler, steps=steps)
            batches = generate(
                model, num_images=args.num_images, seed=seed, batch_size=250, sampler=sampler, steps=steps
            )
            result = evaluator(batches)
            sampling = {"sampler": sampler, "steps": steps, "evaluations": plan.evaluations, "seed": seed}
            rows.append({"sampling": sampling, "weights_sha256": weights_digest(args.model), "evaluation": result})
            print(sampling, {name: round(value, 4) for name, value in flat(result).items()}, flush=True)
            # After every row: the table takes long, and a part of it is of use.
            write_json(args.model / "evaluations.json", rows)


if __name__ == "__main__":
    main()
