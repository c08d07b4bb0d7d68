"""`diffdistill sample`: PNGs, a grid, and a record from which each image can be made again alone."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffdistill import __version__
from diffdistill.data.prompts import digest_of, given_prompts
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.files import new_folder, write_json
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.reporting.grid import image_grid, to_picture
from diffdistill.sampling.generate import Plan, pick_device, plan_sampling, run_plan

GRID_ROWS, GRID_COLUMNS = 10, 10


def run(args: Namespace) -> int:
    """Write `00000.png` ..., `grid.png` and `samples.json` into `--out`, which appears whole or not at all."""
    prompts = given_prompts(args.prompt, args.prompts)
    count = args.num_images or len(prompts or ())
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
        prompts=prompts,
        negative_prompt=args.negative_prompt,
        guidance_scale=args.guidance_scale,
        epsilon_scaling=args.epsilon_scaling,
        time_shift_sampler=args.time_shift_sampler,
        calibration=args.calibration,
    )
    if "auto" in (args.epsilon_scaling, args.time_shift_sampler) and plan.guidance_scale != 1:
        print("note: the calibration was made without guidance, whose images differ from the data", file=sys.stderr)
    with new_folder(out) as folder:
        record = _write_images(model, plan, args, count, folder)
        settings = _settings(args, plan, device) | {"attention": str(attention), "images": record}
        write_json(folder / "samples.json", settings)
    guided = "" if plan.guidance_scale == 1 else f", guidance {plan.guidance_scale:g}"
    print(f"{out}: {_count(count, 'image')}, {plan.sampler}, {_count(plan.evaluations, 'evaluation')} each{guided}")
    return 0


def _write_images(model: Denoiser, plan: Plan, args: Namespace, count: int, folder: Path) -> list[dict[str, Any]]:
    """All PNGs and the grid of the first of them; returns what `samples.json` says of each image."""
    columns = _grid_columns(plan, count)
    shown: list[torch.Tensor] = []
    record: list[dict[str, Any]] = []
    digits = max(5, len(str(count - 1)))
    batches = run_plan(model, plan, num_images=count, seed=args.seed, batch_size=args.batch_size)
    with tqdm(total=count, unit="image", desc=plan.sampler) as bar:
        for images, labels in batches:
            for row, image in enumerate(images):
                index = len(record)
                entry = {"index": index, "file": f"{index:0{digits}d}.png", "seed": args.seed}
                entry |= {"torch_seed": plan.torch_seed(args.seed, index)}
                entry |= _subject(plan, index, None if labels is None else int(labels[row]))
                to_picture(image).save(folder / entry["file"])
                record.append(entry)
                if index < GRID_ROWS * columns:
                    shown.append(image)
            bar.update(len(images))
    captions = None if plan.prompts is None else [entry["prompt"] for entry in record[: len(shown)]]
    image_grid(torch.stack(shown), columns, captions).save(folder / "grid.png")
    return record


def _subject(plan: Plan, index: int, label: int | None) -> dict[str, Any]:
    """What the image shows: its label, or its prompt and what guidance led away from."""
    prompt = plan.prompt(index)
    if prompt is None:
        return {"label": label}
    own = {} if prompt.seed is None else {"seed": prompt.seed}
    return {"prompt": prompt.text, "negative_prompt": prompt.negative, **own}


def _grid_columns(plan: Plan, count: int) -> int:
    """A column a class, or a prompt that is drawn more than once, where there are few enough; else a square."""
    classes = len(plan.class_labels or plan.prompts or (None,))
    if 2 <= classes <= 2 * GRID_COLUMNS and (plan.prompts is None or classes < count):
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
        "prompts_sha256": None if plan.prompts is None else digest_of(plan.prompts),
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
