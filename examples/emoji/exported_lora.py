"""A student of adapters (`student.lora`) in the forms that `export` writes, drawn by stock diffusers.

    python examples/emoji/exported_lora.py runs/emoji_lora/student --images 1000 --out runs/exported_lora.json

Its LoRA by the names of diffusers, kohya and ComfyUI is laid over the bundled teacher by `load_lora_weights`, as it is
and fused, with the student's scheduler and call; captions of `train`, evenly spaced, and the same noise. Each form:
the largest difference from the pictures of the student's own folder, in [0, 1], how many of the files' bytes differ,
and FID and CLIP score by the project's `evaluate`. `rounding` is the folder against itself in float64.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffdistill import evaluate
from diffdistill.assets import asset
from diffdistill.data import load_images
from diffdistill.data.prompts import spread
from diffdistill.export.command import export
from diffdistill.export.formats import Wish

DATA, ROWS = "builtin:emoji", 50
FORMS = {"lora": Wish("lora"), "kohya": Wish("kohya"), "comfyui": Wish("comfyui", rank="kept")}


def stock(folder: str | Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, call: dict[str, Any], prompts: list[str]) -> Tensor:
    """Pictures in [0, 1], `(N, 3, H, W)`; that of i has the noise of generator i, in whatever precision."""
    side = pipeline.unet.config.sample_size
    parts = []
    for start in range(0, len(prompts), ROWS):
        chosen = range(start, min(start + ROWS, len(prompts)))
        shape = (pipeline.unet.config.in_channels, side, side)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in chosen])
        generators = [torch.Generator().manual_seed(i) for i in chosen]  # of later steps
        words = {"latents": noise.to(pipeline.unet.dtype), "generator": generators, "output_type": "pt"}
        parts.append(pipeline([prompts[i] for i in chosen], **words, **call).images)
    return torch.cat(parts)


def over(file: Path, scheduler: Any, fused: bool) -> Any:
    """The teacher with a LoRA file over it."""
    pipeline = stock(asset("emoji_teacher"))
    pipeline.scheduler = scheduler
    pipeline.load_lora_weights(str(file))
    if fused:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline


def pixels_of(images: Tensor) -> Tensor:
    return (255 * images).round().to(torch.uint8)


class Judge:
    """FID and CLIP score of pictures of the prompts; the same pixels are looked at once."""

    def __init__(self, prompts: list[str], place: Path):
        self.prompts, self.known = place / "prompts.txt", list[tuple[Tensor, dict[str, float]]]()
        self.prompts.write_text("".join(f"{prompt}\n" for prompt in prompts), "utf-8")

    def __call__(self, images: Tensor) -> dict[str, float]:
        pixels = pixels_of(images)
        for seen, figures in self.known:
            if torch.equal(seen, pixels):
                return figures
        found = evaluate(
            images=pixels, reference=DATA, metrics=("fid", "clip"), features="emoji", clip="builtin:emoji_clip",
            prompts=str(self.prompts),
        )  # fmt: skip
        self.known.append((pixels, {name: float(value["value"]) for name, value in found["metrics"].items()}))
        return self.known[-1][1]


def measured(student: Path, count: int) -> dict[str, Any]:
    call = json.loads((student / "diffdistill.json").read_text())["call"]
    prompts = spread(list(load_images(DATA).texts or ()), count)
    own = stock(student)
    folder = drawn(own, call, prompts)
    with tempfile.TemporaryDirectory() as place:
        judge = Judge(prompts, Path(place))
        found: dict[str, Any] = {"images": count, "folder": judge(folder)}
        print("folder", found["folder"], flush=True)
        for form, wish in FORMS.items():
            file = Path(place) / f"{form}.safetensors"
            export(str(student), file, wish)
            for fused in (False, True):
                name = f"{form}, fused" if fused else form
                images = drawn(over(file, own.scheduler, fused), call, prompts)
                largest = float((images - folder).abs().max())
                other = int((pixels_of(images) != pixels_of(folder)).sum())
                found[name] = {"largest": largest, "other_values": other, **judge(images)}
                print(name, found[name], flush=True)
    exact = drawn(own.to(torch.float64), call, prompts[:ROWS])
    found["rounding"] = float((exact - folder[:ROWS]).abs().max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = measured(given.student, given.images)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
