"""What the scripts that train the emoji networks share: a rate, a log, the images and small changes of them."""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.data import load_images


def images_of(split: str) -> Tensor:
    """uint8 `(N, 3, 32, 32)` of `builtin:emoji`."""
    return load_images("builtin:emoji", split=split).images


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear from 0 in `warmup` steps, then half a cosine down to 1 % of the peak; a function of the step alone."""
    done = max(0, step - warmup) / max(1, steps - warmup)
    return peak * min(1, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def moved(images: Tensor, zoom: float = 0.1, shift: float = 0.08, turn: float = 0.12) -> Tensor:
    """Each image of float `(B, 3, H, W)`, white = 1, scaled, moved and turned a little; what comes in is white.

    zoom: part of the size; shift: part of the half side; turn: radians. Never mirrored: captions say left and right.
    """
    count = len(images)
    zooms, turns, across, down = (torch.rand(4, count) * 2 - 1).unbind()
    size, angle = 1 + zoom * zooms, turn * turns
    rows = [
        torch.stack([size * angle.cos(), -size * angle.sin(), shift * across], 1),
        torch.stack([size * angle.sin(), size * angle.cos(), shift * down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return 1 + F.grid_sample(images - 1, grid, align_corners=False)


class Log:
    """Lines of JSON, printed and kept for the file beside the weights."""

    def __init__(self, path: Path, before: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.start = path, time.time()
        path.write_text(before)

    def __call__(self, **values: Any) -> None:
        line = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        text = json.dumps(line | {"seconds": round(time.time() - self.start, 1)})
        print(text, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def say_float32(config: Path) -> None:
    """What is stored in float16 to spare room is to be computed in float32: transformers goes by `dtype`."""
    values = json.loads(config.read_text())
    for part in (values, *(values[name] for name in ("text_config", "vision_config") if name in values)):
        part["dtype"] = "float32"
    write_json(config, values)
