"""`diffdistill sample`: PNGs, a grid, and a record from which each image can be made again alone."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffdistill import __version__
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.models.attention import set_attention
from diffdistill.models.folder import locate, new_folder, weights_digest
from diffdistill.reporting.grid import image_grid, to_picture
from diffdistill.sampling.generate import Plan, pick_device, plan_sampling, run_plan
from diffdistill.sampling.noise import image_seed

GRID_ROWS, GRID_COLUMNS = 10, 10


def run(args: Namespace) -> int:
    """Write `00000.png` ..., `grid.png` and `samples.json` into `--out`, which appears whole or not at all."""
    _refuse_prompts(args)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out '{out}' already exists and is not an empty folder; name a new one")
    device = pick_device(args.device)
    model = Denoiser.from_pretrained(args.model, device)
    attention = set_attention(model.network, args.attention or "auto")
    plan = plan_sampling(
        model,
        steps=args.steps,
        sampler=args.sampler,
        class_labels=args.class_labels,
        guidance_scale=args.guidance_scale,
        epsilon_scaling=args.epsilon_scaling,
        time_shift_sampler=args.time_shift_sampler,
        calibration=args.calibration,
    )
    if "auto" in (args.epsilon_scaling, args.time_shift_sampler) and plan.guidance_scale != 1:
        print("note: the calibration was made without guidance, whose images differ from the data", file=sys.stderr)
    with new_folder(out) as folder:
        record = _write_images(model, plan, args, folder)
        settings = _settings(args, plan, device) | {"attention": str(attention), "images": record}
        (folder / "samples.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{out}: {args.num_images} images, {plan.sampler}, {_count(plan.evaluations, 'evaluation')} each")
    return 0


def _refuse_prompts(args: Namespace) -> None:
    if args.prompt is not None or args.prompts is not None:
        raise ConfigError("prompts need a text-to-image model, which is not supported yet; use --class-labels")


def _write_images(model: Denoiser, plan: Plan, args: Namespace, folder: Path) -> list[dict[str, Any]]:
    """All PNGs and the grid of the first of them; returns what `samples.json` says of each image."""
    columns = _grid_columns(plan, args.num_images)
    shown: list[torch.Tensor] = []
    record: list[dict[str, Any]] = []
    digits = max(5, len(str(args.num_images - 1)))
    batches = run_plan(model, plan, num_images=args.num_images, seed=args.seed, batch_size=args.batch_size)
    with tqdm(total=args.num_images, unit="image", desc=plan.sampler) as bar:
        for images, labels in batches:
            for row, image in enumerate(images):
                index = len(record)
                entry = {"index": index, "file": f"{index:0{digits}d}.png", "seed": args.seed}
                entry |= {"torch_seed": image_seed(args.seed, index)}
                entry |= {"label": None if labels is None else int(labels[row])}
                to_picture(image).save(folder / entry["file"])
                record.append(entry)
                if index < GRID_ROWS * columns:
                    shown.append(image)
            bar.update(len(images))
    image_grid(torch.stack(shown), columns).save(folder / "grid.png")
    return record


def _grid_columns(plan: Plan, count: int) -> int:
    """A column a class where there are few enough, else a square."""
    classes = 1 if plan.class_labels is None else len(plan.class_labels)
    if 2 <= classes <= 2 * GRID_COLUMNS:
        return classes
    return min(GRID_COLUMNS, max(1, round(count**0.5)))


def _settings(args: Namespace, plan: Plan, device: torch.device) -> dict[str, Any]:
    """What made the images: with it, `seed` and `index`, one of them is made again alone."""
    import diffusers

    return {
        "model": args.model,
        "model_sha256": weights_digest(locate(args.model)),
        "sampler": plan.sampler,
        "steps": plan.steps,
        "evaluations": plan.evaluations,
        "levels": list(plan.levels),
        "guidance_scale": plan.guidance_scale,
        "corrections": plan.corrections.record(),
        "class_labels": None if plan.class_labels is None else list(plan.class_labels),
        "seed": args.seed,
        "batch_size": args.batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "versions": {
            "diffdistill": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
