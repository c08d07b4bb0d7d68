"""`sample`: images of a model from Python, and the folder that `diffdistill sample` writes."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill import __version__, processes
from diffdistill.data.prompts import digest_of
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.files import new_folder, write_json
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.reporting.grid import image_grid, to_picture
from diffdistill.request import SamplingRequest
from diffdistill.sampling.generate import opened, run_shared
from diffdistill.sampling.pictures import PictureFile
from diffdistill.sampling.plan import Plan, plan_sampling
from diffdistill.showing import facts, in_words, picture

GRID_ROWS, GRID_COLUMNS = 10, 10


@dataclass(frozen=True, repr=False)
class Samples:
    """images: uint8 `(N, C, H, W)` on the CPU, None where they were only written; settings: as in `samples.json`.

    A notebook shows them as a grid, of the first 100.
    """

    images: Tensor | None
    settings: dict[str, Any]
    plan: Plan

    def __repr__(self) -> str:
        return in_words("Samples", self._facts())

    def _repr_html_(self) -> str:
        if self.images is None:
            return facts("Samples", self._facts())
        columns = _grid_columns(self.plan, len(self.images))
        shown = min(len(self.images), GRID_ROWS * columns)
        grid = image_grid(self.images[:shown], columns, self.plan.conditions.captions(shown))
        return picture(grid, repr(self))

    def _facts(self) -> dict[str, Any]:
        count = len(self.settings["images"])
        size = "" if self.images is None else f" of {'x'.join(map(str, self.images.shape[1:]))}"
        return {
            "": f"{count} image{'' if count == 1 else 's'}{size}",
            "by": self.settings["model"],
            "sampler": self.settings["sampler"],
            "evaluations": self.settings["evaluations"],
            "seed": self.settings["seed"],
        }


@processes.together()
def sample(
    model: str | Path | Denoiser,
    *,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | Path | None = None,
    keep: bool = True,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    attention: str = "auto",
    image_format: str = "png",
    quality: int | None = None,
    size: tuple[int, int] | None = None,
    request: SamplingRequest | None = None,
    **settings: Any,
) -> Samples:
    """Draw images: those of `diffdistill sample MODEL`, image i a function of (seed, i).

    model: a folder, `builtin:NAME`, a Hub id or a loaded denoiser; num_images: without it an image of each prompt;
    out: a new folder for `00000.png` ..., `grid.png` and `samples.json`, which appears whole or not at all; keep:
    False where memory does not hold all images, which are only written then; dtype: float32 (None), bfloat16, float16
    or auto, what a model that is read here is held and computed in; image_format, quality: of the files, see
    `pictures.PictureFile`; size: width and height in pixels of a text-to-image model's images, None its own;
    settings: those of a `SamplingRequest`
    (steps, sampler, class_labels, prompts, guidance_scale ...), in place of `request` or to change it. Several
    processes draw the batches in turn: all get the images, the first one writes.

    >>> samples = sample("builtin:fashion_mnist_teacher", num_images=2, steps=2, class_labels=[9])
    >>> samples.images.shape, samples.settings["sampler"], samples.settings["evaluations"]
    (torch.Size([2, 1, 28, 28]), 'heun', 3)

    Raises ConfigError for what the model cannot draw, CheckpointError for a damaged model, DiskError.
    """
    request = replace(request or SamplingRequest(), **settings)
    count = num_images or len(request.prompts or ())
    if count < 1 or batch_size < 1:
        raise ConfigError(f"{count} images in batches of {batch_size} were asked for; both must be 1 or more")
    form = PictureFile(image_format, quality)
    form.check()
    target = None if out is None else Path(out)
    processes.lead(lambda: _refuse_taken(target))
    name = model.metadata.get("path") if isinstance(model, Denoiser) else str(model)
    model = opened(model, device, dtype)
    kernels = set_attention(model.network, attention)
    with model.at_size(size):
        plan = plan_sampling(model, request)
        record = _settings(name, plan, seed, batch_size, next(model.parameters()).device)
        record |= {"attention": str(kernels), **model.dtypes, **form.record(), **({"size": size} if size else {})}
        with nullcontext() if target is None or not processes.leader() else new_folder(target) as folder:
            record["images"] = _entries(plan, count, seed, form)  # all before the first: no memory is taken later
            batches = run_shared(model, plan, num_images=count, seed=seed, batch_size=batch_size)
            images = _collect((drawn for drawn, _ in batches), plan, record["images"], folder, keep, form)
            if folder is not None:
                write_json(folder / "samples.json", record)
    return Samples(images, record, plan)


def _refuse_taken(target: Path | None) -> None:
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out '{target}' already exists and is not an empty folder; name a new one")


def _entries(plan: Plan, count: int, seed: int, form: PictureFile) -> list[dict[str, Any]]:
    """What `samples.json` says of each image."""
    digits = max(5, len(str(count - 1)))
    return [
        {
            "index": index,
            "file": f"{index:0{digits}d}.{form.format}",
            "seed": seed,
            "torch_seed": plan.torch_seed(seed, index),
        }
        | plan.conditions.record(index)
        for index in range(count)
    ]


def _collect(
    batches: Iterator[Tensor],
    plan: Plan,
    entries: list[dict[str, Any]],
    folder: Path | None,
    keep: bool,
    form: PictureFile,
) -> Tensor | None:
    """The images, where they are kept; their files and their grid, where there is a folder."""
    count = len(entries)
    columns = _grid_columns(plan, count)
    shown = min(count, GRID_ROWS * columns)
    kept: list[Tensor] = []
    left = iter(entries)
    with tqdm(total=count, unit="image", desc=plan.sampler) as bar:
        for batch in batches:
            for image, entry in zip(batch, left, strict=False):
                if folder is not None:
                    form.save(to_picture(image), folder / entry["file"])
                if keep or len(kept) < shown:
                    kept.append(image)
            bar.update(len(batch))
    if folder is not None:
        captions = plan.conditions.captions(shown)
        image_grid(torch.stack(kept[:shown]), columns, captions).save(folder / "grid.png")
    return torch.stack(kept) if keep else None


def _grid_columns(plan: Plan, count: int) -> int:
    """A column a class, or a prompt that is drawn more than once, where there are few enough; else a square."""
    turns = plan.conditions.turns(count)
    return turns if 2 <= turns <= 2 * GRID_COLUMNS else min(GRID_COLUMNS, max(1, round(count**0.5)))


def _settings(name: str | None, plan: Plan, seed: int, batch_size: int, device: torch.device) -> dict[str, Any]:
    """What made the images: with it, `seed` and `index`, one of them is made again alone."""
    import diffusers

    prompts = plan.conditions.prompts
    return {
        "model": name,
        "model_sha256": None if name is None else weights_digest(locate(name)),
        **plan.record(),
        "prompts_sha256": None if prompts is None else digest_of(prompts),
        "seed": seed,
        "batch_size": batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "versions": {"diffdistill": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }
